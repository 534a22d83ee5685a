"""Reading models in timm's format, config.json and weights, from a folder or the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from timm.models import PretrainedCfg, load_model_config_from_hf, parse_model_name
from timm.models._hub import download_from_hf, load_model_config_from_path

from .download import download
from .errors import InputError, first_line

SOURCES = ("local-dir:", "hf-hub:", "hf_hub:")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_config(source: str) -> tuple[str, PretrainedCfg, dict[str, Any]]:
    """Name of the architecture, timm's configuration, and constructor arguments of a saved model.

    Args:
        source: "local-dir:FOLDER" or "hf-hub:OWNER/NAME", with "@REVISION" where not the newest is meant.

    Raises:
        InputError: there is no such folder or repository, or no configuration in it.
    """
    kind, where = parse_model_name(source)
    if kind == "local-dir":
        if not (Path(where) / "config.json").is_file():
            raise InputError(f"There is no saved model in {where}: it has no config.json. save_pretrained writes one.")
        cfg, name, arguments = load_model_config_from_path(where)
    else:
        with hub_errors(where):
            cfg, name, arguments = load_model_config_from_hf(where)
    return name, PretrainedCfg(**cfg), arguments


def find_weights(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Path:
    """The file with the weights of a configuration, downloaded where it is not here yet."""
    if cfg.source == "local-dir":
        for name in WEIGHTS:
            if (Path(cfg.file) / name).is_file():
                return Path(cfg.file) / name
        raise InputError(f"There are no weights in {cfg.file}: neither {' nor '.join(WEIGHTS)} is there.")
    if cfg.source == "hf-hub":
        with hub_errors(cfg.hf_hub_id):
            return Path(download_from_hf(cfg.hf_hub_id, WEIGHTS[0], cache_dir=cache_dir))
    return Path(cfg.file) if cfg.file else download(cfg.url, cache_dir)


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into an InputError."""
    try:
        yield
    except (OSError, HFValidationError, *HfHubHTTPError.__bases__) as error:  # bases: of whatever library speaks HTTP
        raise InputError(
            f"The Hugging Face hub did not give or take the model {repository} ({first_line(error)}). Check its name "
            "and the connection; private ones and uploads need `hf auth login`."
        ) from error
