"""The settings for rewriting prompts, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hv15_batch.errors import Refused

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
"""Names that the official client reads too. The key is stored nowhere."""


@dataclass
class RewriteConfig:
    """A server that rewrites prompts before they are rendered; on once URL or model is typed."""

    base_url: str | None = field(default=None, metadata={"typed_only": True})
    """Address of an OpenAI-style server, e.g. `http://127.0.0.1:8000/v1`; null: that of the
    environment variable OPENAI_BASE_URL. A key comes from OPENAI_API_KEY alone."""
    model: str | None = field(default=None, metadata={"typed_only": True})
    """Model on that server; null asks for `default`, a name that servers of one model ignore."""
    template: str | None = field(default=None, metadata={"typed_only": True})
    """Text file with instructions for that model; null means those of this package."""

    @property
    def is_on(self) -> bool:
        """Whether prompts are rewritten."""
        return self.base_url is not None or self.model is not None

    def address(self, environ: Mapping[str, str]) -> str | None:
        """Return the server's address, typed or of the environment.

        Raises:
            Refused: It is no address, or one with a user, a password or a query.
        """
        typed, found = "rewrite.base_url", self.base_url
        if found is None:
            typed, found = URL_VARIABLE, environ.get(URL_VARIABLE, "").strip() or None
        if found is not None and (fault := _url_fault(found)):
            raise Refused(f"{typed}: {fault}.")
        return found


def check_rewriting(config: RewriteConfig) -> None:
    """Check what was typed, without the environment.

    Raises:
        Refused: The address is none, or there is a template without a server.
    """
    config.address({})
    if config.model is not None and not config.model.strip():
        raise Refused("rewrite.model: is empty; name a model of the server, or leave it out.")
    if config.template is not None and not config.is_on:
        raise Refused(
            f"rewrite.template={config.template}: has no effect without rewrite.base_url or "
            "rewrite.model; add one, or leave it out."
        )


def _url_fault(url: str) -> str | None:
    """Return what is wrong with an address, without the address: it may hold a secret."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        return "must be an address such as http://127.0.0.1:8000/v1; correct it"
    if parts.username is not None or parts.password is not None:
        return f"an address has no user and no password, because it is stored; use {KEY_VARIABLE}"
    if parts.query or parts.fragment:
        return f"an address has no ? and no #, because it is stored; put a key into {KEY_VARIABLE}"
    return None
