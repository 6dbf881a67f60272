"""From launch.yaml to the workers of a job, or none: then the stage does the work itself."""

from gift.project.errors import UserError
from gift.workers.link import Job, Source
from gift.workers.local import LocalWorkers, shares
from gift.workers.pool import Pool
from gift.workers.remote import RemoteWorkers, SlurmWorkers, listen_problem
from gift.workers.settings import Workers


def pool_for(job: Job, settings: Workers) -> Pool | None:
    """The workers of a job, to be entered; None: the stage's own process does the work."""
    return None if alone(job, settings) else open_pool(job, settings)


def alone(job: Job, settings: Workers) -> bool:
    """Whether the stage's own process does the work: one worker, here, whom no other may join, and who ends with it."""
    one = settings.kind == "local" and settings.listen is None and len(shares(job.gpus, job.number)) == 1
    return one and job.key is None


def open_pool(job: Job, settings: Workers) -> Pool:
    """To be entered. What others connect to, or places workers elsewhere, starts here; a worker when it is needed."""
    if problem := listen_problem(settings):
        raise UserError(problem)
    sources: list[Source] = []
    if settings.kind == "local":
        sources.append(LocalWorkers(job))
    if settings.kind == "ray":
        from gift.workers.on_ray import RayWorkers

        sources.append(RayWorkers(job, settings))
    if settings.kind == "srun":
        sources.append(SlurmWorkers(job, settings.listen or "", settings.args))
    elif settings.listen is not None:
        sources.append(RemoteWorkers(job, settings.listen))
    return Pool(job, sources, settings.timeout_minutes)
