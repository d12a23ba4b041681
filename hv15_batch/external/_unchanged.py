"""Whether the script's code and its model's files are still those that the run was planned with."""

from __future__ import annotations

from pathlib import Path

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Emit, Note
from hv15_batch.errors import Refused
from hv15_batch.official.verdict import CHANGED, ScriptFault
from hv15_batch.weights.checkpoint import engine_state, resolve_weights


class Unchanged:
    """Compares sizes and times for each clip, and hashes only where they differ."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[str, dict[Path, tuple[int, int]]] = {}

    def check(self, config: Config, clip: Clip, emit: Emit) -> None:
        """Check that a clip is made by what its identity names.

        Args:
            config: Settings, `model` being the clip's.
            clip: The clip.
            emit: Gets a line before large files are hashed.

        Raises:
            ScriptFault: A file has another content, was added, or is gone.
        """
        model, folder = config.model.name, config.official.repo
        try:
            state = engine_state(config)
            if self._known.get(model) == state:
                return
            found = resolve_weights(config, lambda text: emit(Note(text))).engine
        except (OSError, Refused) as error:
            raise ScriptFault(
                CHANGED, f"official.repo={folder} can no longer be read: {error}"
            ) from error
        planned = _contents(clip.settings.engine)
        differing = [name for name, value in _contents(found).items() if planned[name] != value]
        if differing:
            what = " and ".join({"code": "its code", "ckpts": "its ckpts"}[n] for n in differing)
            raise ScriptFault(
                CHANGED,
                f"official.repo={folder}: {what} was changed since the run was planned; run again, "
                "or put the files back",
            )
        self._known[model] = state


def _contents(engine: str | None) -> dict[str, str]:
    """Return the hashes of code and model files in `ClipSettings.engine`, by their names there."""
    words = [word.partition("=") for word in (engine or "").split(" ")[1:3]]
    return {name: value for name, _, value in words}
