"""A launcher and sweepers as they are written outside of Hydra; it finds them by this folder."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


def _launch_one(context: HydraContext, task: TaskFunction, config: DictConfig) -> JobReturn:
    setup_globals()
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


class ProcessLauncher(Launcher):
    """Runs each job in a fresh process, as joblib and submitit do."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        configs = []
        for number, overrides in enumerate(job_overrides):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = initial_job_idx + number
            configs.append(config)
        spawn = multiprocessing.get_context("spawn")
        launch = partial(_launch_one, self.context, self.task)
        with ProcessPoolExecutor(2, mp_context=spawn) as pool:
            return list(pool.map(launch, configs))


class Daemons(ProcessLauncher):
    """Runs its jobs in a pool of daemonic processes."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        configs = [
            self.context.config_loader.load_sweep_config(self.config, list(overrides))
            for overrides in job_overrides
        ]
        launch = partial(_launch_one, self.context, self.task)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(launch, configs)


class Threads(ProcessLauncher):
    """Runs its jobs in a thread of this process."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        configs = [
            self.context.config_loader.load_sweep_config(self.config, list(overrides))
            for overrides in job_overrides
        ]
        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(partial(_launch_one, self.context, self.task), configs))


class SilentSweeper(BasicSweeper):
    """Returns nothing, as sweepers that optimise do."""

    def sweep(self, arguments: list[str]) -> None:
        super().sweep(arguments)


class Deaf(ProcessLauncher):
    """On a machine that does not see the folder for temporary files of this one."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        task = self.task
        assert isinstance(task, partial)
        self.task = partial(task.func, **{**task.keywords, "ends": "/nowhere"})
        return super().launch(job_overrides, initial_job_idx)


_SWEEPER = {"max_batch_size": None, "params": None}
for group, name, plugin in (
    ("launcher", "processes", ProcessLauncher),
    ("launcher", "deaf", Deaf),
    ("launcher", "daemons", Daemons),
    ("launcher", "threads", Threads),
    ("sweeper", "silent", SilentSweeper),
):
    node = {"_target_": f"{__name__}.{plugin.__name__}"}
    more = _SWEEPER if group == "sweeper" else {}
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node | more)
