"""What the pages tell a reader to type works: README.md and docs/, by tests/doc_runner.py."""

import pytest

from . import doc_runner
from .doc_runner import PAGES, Block

BLOCKS = [block for page in PAGES for block in doc_runner.blocks(page)]
PYTHON = [block for block in BLOCKS if block.language in ("python", "py") and block.reason is None]
COMMANDS = [block for block in BLOCKS if block.language not in ("python", "py")]
QUICK = [(str(b), words) for b in COMMANDS for words in doc_runner.commands(b) if doc_runner.is_quick(words)]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_programs_run(block, tmp_path):
    with doc_runner.inside(tmp_path):
        doc_runner.run_python(block, doc_runner.names_of_pages())


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_could_be_started(block, run_folder):
    """Also those that need what is not here, unless they are of another program."""
    for command in doc_runner.commands(block):
        if block.reason is None or command[0] in ("python", "torchrun", "pip"):
            doc_runner.check(command, run_folder)


@pytest.mark.parametrize(("block", "command"), QUICK, ids=str)
def test_what_only_prints_is_run(block, command, tmp_path):
    doc_runner.run(command, {}, tmp_path)


@pytest.fixture(scope="session")
def world(tmp_path_factory, run_folder):
    """A folder with something for all that the commands name, and what stands for what in each page."""
    from . import doc_world  # takes what only these tests need

    folder = tmp_path_factory.mktemp("world")
    return folder, doc_world.build(folder, run_folder)


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in COMMANDS if block.reason is None], ids=str)
def test_commands_run(block, world):
    folder, things = world
    for command in doc_runner.commands(block):
        doc_runner.run(command, things.get(block.page, things[""]), folder)


def test_blocks_are_found_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(doc_runner, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```text\npython no.py\n```\n<!-- not run: needs a GPU -->\n\n```sh\npython -m backbones tune\n```\n"
        "1. Then\n\n   ```python\n   if True:\n       x = 1\n   ```\n\n"
        "````md\n```sh\nno\n```\n````\n"
        "```bash\nA=1 python train.py \\\n    a=1 …   # why\n\n# only this\nmake 'b c'\n```\n"
    )
    marked, program, commands = doc_runner.blocks(page)
    assert marked == Block("page.md", 6, "sh", "python -m backbones tune", "needs a GPU")
    assert (program.text, program.reason, program.line) == ("if True:\n    x = 1", None, 11)
    assert doc_runner.commands(commands) == [["A=1", "python", "train.py", "a=1"], ["make", "b c"]]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("python train.py trainer.epochs=3", "python train.py trainer.epoch=3"),
        ("python train.py backbone=swin_t", "python train.py backbone=swin_x"),
        ("python train.py --help", "python train.py --nonsense"),
        ("python train.py -m backbone=swin_nano,swin_t", "python train.py -m backbone=swin_nano,swin_x"),
        ("python train.py resume=RUN", "python train.py resume=nowhere"),
        ("python eval.py run=RUN trainer.batch_size=1", "python eval.py run=RUN trainer.nothing=1"),
        ("python eval.py run=RUN data=imagenet_a", "python eval.py run=RUN data=nothing"),
        ("python -m backbones explain --backbone a --image b", "python -m backbones explain --backbone a"),
        ("python -m training report RUN", "python -m training repot RUN"),
        ("python benchmarks/kernels.py --smoke", "python benchmarks/kernels.py --smoky"),
        ("torchrun --nproc-per-node 8 train.py seed=1", "torchrun --nproc-per-node 8 train.py seeds=1"),
        ("sbatch docs/slurm/train.sbatch RUN seed=1", "sbatch docs/slurm/train.sbatch RUN seeds=1"),
        ("pip install '.[dev]'", "pip install '.[nothing]'"),
        ("make test", "make nothing"),
        ("export A=1", "cargo build"),
    ],
)
def test_a_wrong_command_is_found(right, wrong, run_folder):
    right, wrong = (doc_runner.commands(Block("page.md", 1, "sh", text, None))[0] for text in (right, wrong))
    doc_runner.check(right, run_folder)
    with pytest.raises((Exception, SystemExit)):
        doc_runner.check(wrong, run_folder)


def test_what_is_not_run_says_why():
    marked = [block for block in BLOCKS if block.reason is not None]
    assert marked and all(len(block.reason.split()) > 1 for block in marked)
