"""The starting policy as a folder: built here, or links to a local model or to one fetched from the hub."""

from pathlib import Path

from gift.params import Params
from gift.policy.folder import check_files
from gift.project.console import Progress
from gift.project.errors import UserError

HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def make_base(params: Params, folder: Path, work: Path) -> None:
    """Fill `folder` with the model that `base.model` names; `work` keeps an unfinished training of the embedded one."""
    if params.base.model == "arithmetic":
        _train(params, folder, work)
    elif Path(params.base.model).is_dir():
        _link(Path(params.base.model), folder)
    else:
        _link(_fetch(params.base.model, params.base.revision), folder)
    check_files(folder)


def _train(params: Params, folder: Path, work: Path) -> None:
    from gift.embedded.base_policy import train_base

    settings = params.base.arithmetic
    with Progress("base", settings.steps, "steps") as progress:
        model, tokenizer = train_base(
            settings,
            params.prepare.arithmetic.num_operands,
            params.seed,
            work,
            lambda step, loss: progress.advance(step - progress.done),
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError:
        raise UserError(
            f"params.yaml: base.model: '{model}' is neither 'arithmetic', a local folder, nor a hub id"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"params.yaml: base.model: '{model}' could not be fetched from the hub ({type(error).__name__}); check the "
            "name and the network, or give a local model folder"
        ) from None


def _link(source: Path, folder: Path) -> None:
    """Symbolic links to the model's files: a policy that can be fetched again is not kept twice."""
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in HUB_FILES) and path.name != "gift.json":
            (folder / path.name).symlink_to(path.resolve())
