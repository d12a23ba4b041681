"""A stand-in for Tencent's generate.py: the same flags, words and files, and no model.

Its videos are those in the folder `videos` beside it, named by their number of frames.

What a prompt says in square brackets, it does: `[exit 3]`, `[raise]`, `[hang]`, `[kill]` in the
middle of its file, `[no file]`, `[short]`, `[renamed]`, `[upscaled]`, `[fell back]`, `[no box]`,
`[not rewritten]`, `[broken]`, `[silent]`, `[gone]`, `[child]`, `[other seed]`, `[plain]`,
`[late exit 3]` behind its file, `[dies]` behind its answer, `[moved]` out of its folder, `[loud]`,
`[open end]` without a last newline, `[edits]` its own code, `[slow]` steps,
`[half speed]` frames.
Source of the flags and words: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "imports.txt"), "a") as log:
    log.write(f"{os.getpid()} {os.environ.get('RANK')} {os.environ.get('MASTER_PORT')}\n")


def str_to_bool(value):
    if value is None or isinstance(value, bool):
        return value is None or value
    if value.lower().strip() in ("true", "1", "yes", "on"):
        return True
    if value.lower().strip() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"Boolean value expected, got: {value}")


class HunyuanVideo_1_5_Pipeline:
    @classmethod
    def create_pipeline(cls, model_path, version):
        with open(os.path.join(os.path.dirname(model_path), "loads.txt"), "a") as log:
            log.write(f"{version}\n")
        return cls()

    def apply_infer_optimization(self):
        assert not hasattr(self, "optimised"), "twice"
        self.optimised = True

    def __call__(self, args, has):
        if has("fell back"):
            args.fell_back = True
        mode = "sageattn" if args.use_sageattn else "flash"
        box = {
            "User Prompt": args.prompt,
            "Rewritten Prompt": "<disabled>",
            "Aspect Ratio": args.aspect_ratio,
            "Video Length": args.video_length,
            "Reference Image": f"{args.image_path} ",
            "Guidance Scale": 6.0,
            "Guidance Embedded Scale": None,
            "Shift": 5.0,
            "Seed": 123456 if has("other seed") else args.seed,
            "Video Resolution": "64 x 48",
            "Attn mode": mode,
            "Transformer dtype": "torch.bfloat16",
            "Sampling Steps": args.num_inference_steps,
            "Use Meanflow": False,
        }
        if not has("no box"):
            lines = [f"{name + ':':<27}{value}" for name, value in box.items()]
            heading = "\U0001f3ac  HunyuanVideo Generation Task"
            print("\n".join(["", "=" * 60, heading, "-" * 60, *lines, "=" * 60, ""]))
        steps = args.num_inference_steps
        for step in range(steps + 1):
            bar = "█" * (10 * step // steps)
            print(f"\r{100 * step // steps:3}%|{bar:<10}| {step}/{steps} [00:00<00:00]", end="",
                  file=sys.stderr, flush=True)  # fmt: skip
            if step == 1 and has("fell back"):
                warnings.warn(
                    "Falling back from `sageattn` to `flash2` because `sageattn` is not properly "
                    "installed.",
                    stacklevel=1,
                )
            if step == 1 and has("hang"):
                time.sleep(3600)
            if has("slow"):
                time.sleep(0.2)
        print(file=sys.stderr)
        name = "plain" if has("plain") else f"{args.video_length - has('short')}"
        name = "at_12" if has("half speed") else name
        return os.path.join(FOLDER, "videos", f"{name}.mp4")


def save_video(video, path):
    shutil.copyfile(video, path)


def generate_video(args):
    def has(word):
        return f"[{word}" in args.prompt

    if has("exit"):
        sys.exit(int(args.prompt.partition("[exit ")[2].partition("]")[0]))
    if has("raise"):
        raise ValueError("sparse_attn and use_sageattn cannot be enabled simultaneously.")
    if has("child"):
        sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
        subprocess.Popen(sleeper, start_new_session=True)
    task = "i2v" if args.image_path else "t2v"
    version = f"{args.resolution}_{task}"
    if args.enable_step_distill:
        version += "_step_distilled"
    elif args.cfg_distilled:
        version += "_distilled"
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(args.model_path, version)
    pipe.apply_infer_optimization()
    print("WARNING | Warning: Prompt rewriting is disabled. This may affect it.", file=sys.stderr)
    if has("not rewritten") or args.rewrite:
        print("WARNING | Failed to rewrite prompt: Connection refused", file=sys.stderr)
    video = pipe(args, has)
    path = args.output_path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if has("no file"):
        print(f"Saved video to: {path}")
        return
    if has("gone"):
        os._exit(0)
    if has("renamed"):
        path = f"{path[:-4]}_0.mp4"
    save_video(video, path)
    if has("moved"):
        clips = os.path.dirname(os.path.dirname(path))
        os.rename(path, os.path.join(clips, f"{os.path.basename(path)[:-4]}_0.mp4"))
    if has("edits"):
        with open(os.path.join(FOLDER, "hyvideo", "steps.py"), "a") as file:
            file.write("# edited\n")
    if has("loud"):
        sys.stdout.flush()
        os.write(1, b"\xff\xfe" * 100_000 + b"\n" + b"a line\n" * 20_000)
    if has("broken"):
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
    if has("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if has("silent"):
        return
    if args.sr or has("upscaled"):
        print(f"Saved SR video to: {path}")
        print(f"Saved original video (before SR) to: {path[:-4]}_before_sr.mp4")
    elif has("open end"):
        print(f"Saved video to: {path}", end="")
        return
    else:
        print(f"Saved video to: {path}")
    if has("late exit"):
        sys.exit(int(args.prompt.partition("[late exit ")[2].partition("]")[0]))
    if has("dies"):
        threading.Timer(0.05, os._exit, (9,)).start()
    config = {"task": task, "transformer_version": version, "arguments": vars(args)}
    with open(f"{path[:-4]}_config.json", "w") as file:
        json.dump(config, file)
    print(f"Saved generation config to: {path[:-4]}_config.json")


def main():
    parser = argparse.ArgumentParser(description="Generate video using HunyuanVideo-1.5")
    parser.add_argument("--prompt", type=str, required=True)
    parser.add_argument("--negative_prompt", type=str, default="")
    parser.add_argument("--resolution", type=str, required=True, choices=["480p", "720p"])
    parser.add_argument("--model_path", type=str, required=True)
    parser.add_argument("--aspect_ratio", type=str, default="16:9")
    parser.add_argument("--num_inference_steps", type=int, default=None)
    parser.add_argument("--video_length", type=int, default=121)
    for name in ("--sr", "--rewrite", "--offloading", "--overlap_group_offloading"):
        parser.add_argument(name, type=str_to_bool, nargs="?", const=True, default=True)
    for name in ('--save_pre_sr_video', '--cfg_distilled', '--enable_step_distill',
                 '--sparse_attn', '--use_sageattn', '--enable_torch_compile', '--enable_cache',
                 '--use_fp8_gemm'):  # fmt: skip
        parser.add_argument(name, type=str_to_bool, nargs="?", const=True, default=False)
    parser.add_argument("--group_offloading", type=str_to_bool, nargs="?", const=True)
    parser.add_argument("--dtype", type=str, default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--image_path", type=str, default=None)
    parser.add_argument("--output_path", type=str, default=None)
    parser.add_argument("--quant_type", type=str, default="fp8-per-token-sgl")
    args = parser.parse_args()
    with open(os.path.join(os.path.dirname(args.model_path), "rows.jsonl"), "a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    generate_video(args)


if __name__ == "__main__":
    main()
