"""Commands and programs in the pages, run or checked.

A fenced block in `sh` or `python` is run by a test unless the line before it says why not: `<!-- not run: REASON -->`.
A word in capitals, or a path below /data, stands for something of the reader's, for which `doc_world.py` has something
small and real.
"""

import argparse
import configparser
import glob
import importlib
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.distributed.run import get_args_parser

import backbones
import eval as evaluation
import train
from training.sweep import jobs_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("sh", "bash", "shell", "console", "python", "py")
PROGRAMS = {"train.py": train, "eval.py": evaluation}
DENSE = ("detection", "instance", "semantic", "panoptic")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` is why it is not run."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """All blocks of a page that a reader could run."""
    found, lines = [], path.read_text().splitlines()
    fence, before = None, ""
    for number, line in enumerate(lines):
        if fence is None and (opened := re.fullmatch(r"\s*(`{3,})(\w*).*", line)):
            fence, language, start = opened[1], opened[2], number + 1
            reason = re.fullmatch(r"<!-- not run: (.+) -->", before)
        elif fence is not None and line.strip() == fence:
            if language in LANGUAGES:
                text = textwrap.dedent("\n".join(lines[start:number]))
                page = str(path.relative_to(ROOT))
                found.append(Block(page, start, language, text, reason and reason[1]))
            fence = None
        if line.strip():
            before = line.strip()
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a block in `sh`, as words, without comments and what an ellipsis leaves to the reader."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = ([word for word in shlex.split(line, comments=True) if word != "…"] for line in lines)
    return [command for command in words if command]


def without_environment(command: list[str]) -> tuple[dict[str, str], list[str]]:
    """Variables that are set before a command, and the command."""
    first = next((i for i, word in enumerate(command) if not re.match(r"[A-Z_]+=", word)), len(command))
    return dict(word.split("=", 1) for word in command[:first]), command[first:]


def check(command: list[str], run: Path) -> None:
    """Raise where a command could not be started: an unknown program, choice, key or argument.

    Args:
        run: the folder of a finished run, for runs that the command names.
    """
    _, command = without_environment(command)
    command = [standing_for(word, {"RUN": str(run)}) for word in command]
    match command:
        case ["python", "-m", tool, *arguments] if (ROOT / tool / "__main__.py").is_file():
            parse(main_of(tool), arguments)
        case ["python", "train.py" | "eval.py" as program, *arguments]:
            compose(program, arguments)
        case ["python", script, *arguments] if script.startswith("benchmarks/"):
            parse(lambda: run_script(ROOT / script), arguments)
        case ["torchrun", *arguments]:
            options = get_args_parser().parse_args(arguments)
            compose(options.training_script, options.training_script_args)
        case ["sbatch", script, _, *overrides]:
            assert (ROOT / script).is_file(), script
            compose("train.py", overrides)
        case ["pip", "install", *wanted]:
            settings = configparser.ConfigParser()
            settings.read(ROOT / "setup.cfg")
            extras = [extra for word in wanted for extra in re.findall(r"\w+", word.partition("[")[2])]
            assert set(extras) <= set(settings["options.extras_require"]), wanted
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
        case ["export" | ".", _] | ["python", "-m", "venv", _]:
            pass
        case _:
            raise ValueError(f"The tests do not know how to check `{shlex.join(command)}`.")


class Parsed(Exception):
    """Ends a program when its arguments have been read."""


def parse(main, arguments: list[str]) -> None:
    """Let a program read its arguments, and no more."""

    def parse_args(parser: argparse.ArgumentParser, *given):
        raise Parsed(read(parser, *given))

    read, argv = argparse.ArgumentParser.parse_args, sys.argv
    argparse.ArgumentParser.parse_args, sys.argv = parse_args, ["program", *arguments]
    try:
        main()
    except Parsed:
        pass
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = read, argv


def run_script(script: Path) -> None:
    """Run a program as Python does, with its folder as the first place of modules."""
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.path.remove(str(script.parent))


def main_of(tool: str):
    """The main function of a package that `python -m` runs."""
    return importlib.import_module(f"{tool}.__main__").main


def compose(program: str, arguments: list[str]) -> None:
    """Compose each configuration that train.py or eval.py would run, and check its types."""
    overrides = [word for word in arguments if "=" in word]
    flags = [word for word in arguments if "=" not in word]
    assert set(flags) <= {"--help", "--cfg", "job", "-m"}, flags
    if "--help" in flags:
        return
    train.register_schemas(eval=evaluation.EvalConfig)
    if program == "eval.py" and "-m" in flags:
        values = evaluation.values_given(overrides)
        if any("*" in value for value in values.get("checkpoint", [])):
            values["checkpoint"] = ["FILE"]  # of the reader's, which are not here
        for job in jobs_of(values):
            compose(program, job.overrides)
        return
    given = dict(word.split("=", 1) for word in overrides)
    folder = given.get("run" if program == "eval.py" else "resume", "auto")
    if folder != "auto":
        data = "data" in given
        per_call = evaluation.PER_CALL if program == "eval.py" else train.PER_CALL
        of_run = [word for word in overrides if word.partition("=")[0] not in per_call]
        of_data = [word for word in of_run if data and word.startswith(("data=", "data."))]
        learned = OmegaConf.to_object(train.saved_config(Path(folder), [w for w in of_run if w not in of_data]))
        if of_data:
            evaluation.other_data(learned.data, given["data"], of_data)
        return
    words = [[train.with_free_keywords(word)] for word in overrides]
    if "-m" in flags:
        parsed = (OverridesParser.create().parse_override(word) for (word,) in words)
        words = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [one.input_line]
            for one in parsed
        ]
    for job in itertools.product(*words):
        with hydra.initialize_config_dir(train.CONFIGS, version_base="1.3"):
            config = hydra.compose(program.removesuffix(".py"), list(job))
        if config.trainer.rehearse:
            for short in train.rehearsals(OmegaConf.to_container(config, resolve=True), "swin_nano", on_cpu=True):
                OmegaConf.to_object(train.with_types(OmegaConf.create(short)))
        else:
            OmegaConf.to_object(config)


def standing_for(word: str, things: dict[str, str]) -> str:
    """A word with what stands for something of the reader's replaced, runs first."""
    word = re.sub(r"runs/(\w+/(TIME|\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)|\*/\*)", "RUN", word)
    for name, thing in things.items():
        word = re.sub(rf"(?<![\w/.]){re.escape(name)}(?!\w)", thing, word)
    return word


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_python(block: Block, names: dict) -> None:
    """Run a block in Python with some names that pages use without saying where they come from."""
    exec(compile("\n" * block.line + block.text, block.page, "exec"), dict(names))


def names_of_pages() -> dict:
    """A model, and pictures for it."""
    model = backbones.create_model("swin_nano", num_classes=10)
    return dict(torch=torch, model=model.eval(), images=torch.randn(2, 3, 32, 32), image=torch.randn(1, 3, 32, 32))


def is_quick(command: list[str]) -> bool:
    """Whether a command only prints something that is known already."""
    tool = command[:3] == ["python", "-m", "backbones"] and command[3] in ("list", "info")
    return tool or (command[0] == "python" and bool({"--help", "--cfg"} & set(command)))


def run(command: list[str], things: dict[str, str], folder: Path) -> None:
    """Run a command as it is in the page, but for small things in place of the reader's, and for two steps of training.

    Args:
        things: what stands for words in capitals and for paths below /data.
        folder: an empty folder to run in.
    """
    environment, command = without_environment(command)
    command = [standing_for(word, things) for word in command]
    command = [match for word in command for match in (sorted(glob.glob(word, root_dir=folder)) or [word])]
    match command:
        case ["python", "train.py" | "eval.py" as program, *arguments]:
            arguments = shortened(program, arguments)
            with inside(folder):
                call(PROGRAMS[program].main, [program, *arguments], arguments)
        case ["python", "-m", tool, *arguments] if (ROOT / tool / "__main__.py").is_file():
            with inside(folder):
                call(main_of(tool), [tool, *arguments])
        case ["python", script, *arguments]:
            start([sys.executable, str(ROOT / script), *arguments], folder, environment)
        case ["torchrun", *arguments]:
            options = get_args_parser().parse_args(arguments)
            script = options.training_script
            given = shortened(script, options.training_script_args)
            head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            start([*head, str(ROOT / script), *given], folder, environment)
        case _:  # make, pip, sbatch: what they start is run elsewhere, or needs what is not here
            check(command, Path(things["RUN"]))


def call(main, argv: list[str], *arguments: list[str]) -> None:
    """Call a program's main function; any end but a good one is an error."""
    before, sys.argv = sys.argv, argv
    try:
        main(*arguments)
    except SystemExit as end:
        assert not end.code, f"{shlex.join(argv)} ended with {end.code}"
    finally:
        sys.argv = before


def start(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def shortened(program: str, arguments: list[str]) -> list[str]:
    """Arguments for seconds of work: a rehearsal of an experiment, else a nano, small pictures, two steps."""
    arguments = [re.sub(r"^backbone=\w+(?<!_nano)$", "backbone=swin_nano", word) for word in arguments]
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    arguments = [*arguments, "data.workers=0", "trainer.device=cpu", "trainer.precision=fp32"]
    if "experiment" in given:
        return [*arguments, "trainer.rehearse=true"]
    if "run" in given or given.get("resume", "auto") != "auto":
        return arguments
    dense = given.get("task", "").startswith(DENSE)
    if dense and "data" not in given:
        arguments += ["data.train_scenes=4", "data.val_scenes=2"]
    elif dense:
        arguments += ["data.img_size=96", "recipe.dense.crop=[96,96]"]
    elif "data" in given:
        arguments += ["data.img_size=32"]
    if program == "train.py":
        arguments += ["trainer.max_steps=2"]
    return [*arguments, f"trainer.batch_size={2 if dense else 16}"]
