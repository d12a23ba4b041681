"""Clips of the 480p model as they are planned."""

from __future__ import annotations

from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.planning.plan import PlannedClip, State

BASE = ClipSettings(
    prompt="a cat",
    negative_prompt=None,
    image_sha256=None,
    seed=0,
    height=480,
    width=848,
    num_frames=121,
    num_inference_steps=50,
    guidance_scale=1.0,
    flow_shift=5.0,
    fps=24.0,
    video={"codec": "h264", "crf": 17, "preset": "medium", "embed_metadata": True},
    model="480p_t2v_distilled",
    revision="a" * 40,
    weights="pretrained",
    dtype="bfloat16",
    attention_backend="auto",
)


def clip_of(index: int, settings: ClipSettings, off_recipe: bool = False) -> Clip:
    return make_clip(
        row_id=f"row{index}",
        row_index=index,
        line=index + 2,
        settings=settings,
        image=None,
        image_path=None,
        tags={},
        off_recipe=off_recipe,
    )


def planned_clip(clip: Clip, state: State = State.new, reason: str = "") -> PlannedClip:
    return PlannedClip(
        clip=clip,
        state=state,
        reason=reason,
        attempts=0,
        has_latents=False,
        use_latents=False,
        has_result=state is State.done,
        last=None,
    )
