"""The frame of the command line: how a verb is found, and what each way of ending means outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import boxwright
import boxwright.cli
from boxwright.cli import main as frame
from boxwright.cli.main import main, verb_names

SAMPLE_VERB = '''
import os, subprocess, sys
from boxwright.cli._options import JsonOption
from boxwright.cli._output import print_json
from boxwright.core.errors import AnswerIsNoError, InputError

def sample(how: str, as_json: JsonOption = False) -> None:
    """End in the way that is asked for.

    This is not part of the summary.
    """
    print("from Python")
    os.write(1, b"from C\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    if how == "input":
        raise InputError("a.jpg", expected="an image", got="a\\ntext", fix="pass another")
    if how == "defect":
        raise RuntimeError("a defect")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "torch":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if how == "unknown-module":
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")
    print_json({"how": how})
    if how == "no":
        raise AnswerIsNoError("1 of 2 images could not be read")
'''


@pytest.fixture
def sample_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of verbs with one verb, `sample`, and a file that is none."""
    (tmp_path / "sample.py").write_text(SAMPLE_VERB)
    (tmp_path / "_shared.py").write_text("raise RuntimeError('nobody imports me')")
    monkeypatch.setattr(frame, "_FOLDER", tmp_path)
    monkeypatch.setattr(boxwright.cli, "__path__", [*boxwright.cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "boxwright.cli.sample", raising=False)


@pytest.mark.usefixtures("sample_verb")
@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        (["sample", "well"], 0, ""),
        (["sample", "input"], 2, "boxwright: a.jpg: expected an image, got a text; pass another\n"),
        (["sample", "no"], 3, "boxwright: 1 of 2 images could not be read\n"),
        (["sample", "interrupt"], 130, "boxwright: interrupted\n"),
        (
            ["sample", "torch"],
            2,
            "boxwright: boxwright sample: expected the package torch, got an environment without it; "
            "run: pip install 'boxwright[export]'\n",
        ),
        (["sample"], 2, "boxwright: Missing argument 'how'. (see: boxwright sample --help)\n"),
        (["sample", "well", "--bad"], 2, "boxwright: No such option: --bad (see: boxwright sample --help)\n"),
        (["simple"], 2, "boxwright: No such command 'simple'. Did you mean 'sample'? (see: boxwright --help)\n"),
        (["_shared"], 2, "boxwright: No such command '_shared'. (see: boxwright --help)\n"),
        (["--bad"], 2, "boxwright: No such option: --bad (see: boxwright --help)\n"),
    ],
)
def test_each_end_has_its_status_and_one_line(
    arguments: list[str], status: int, stderr: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    assert capfd.readouterr().err.replace("\n\n", "\n") == stderr


@pytest.mark.usefixtures("sample_verb")
@pytest.mark.parametrize(("how", "error"), [("defect", RuntimeError), ("unknown-module", ModuleNotFoundError)])
def test_a_defect_of_ours_keeps_its_traceback(how: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        main(["sample", how])


@pytest.mark.usefixtures("sample_verb")
@pytest.mark.parametrize(("how", "status"), [("well", 0), ("no", 3)])
def test_json_stands_alone_on_stdout(how: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", how, "--json"]) == status
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"how": how}
    assert {"from Python", "from C", "from a child"} <= set(captured.err.splitlines())
    print("stdout is itself again", flush=True)
    os.write(1, b"and its descriptor\n")
    assert capfd.readouterr().out == "stdout is itself again\nand its descriptor\n"


@pytest.mark.usefixtures("sample_verb")
def test_json_is_captured_from_a_replaced_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "well", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"how": "well"}


@pytest.mark.usefixtures("sample_verb")
def test_without_json_stdout_stays_open_to_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "well"]) == 0
    assert {"from Python", "from C", "from a child"} <= set(capfd.readouterr().out.splitlines())


@pytest.mark.usefixtures("sample_verb")
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_verbs_without_importing_them(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert verb_names() == ["sample"]
    assert main(arguments) == 0
    out = capfd.readouterr().out
    assert "End in the way that is asked for." in out
    assert "not part of the summary" not in out
    assert "boxwright.cli.sample" not in sys.modules


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"{boxwright.__version__}\n"


@pytest.mark.parametrize("verb", verb_names())
def test_every_verb_has_help_and_a_summary(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert frame._verb_summary(verb).endswith(".")
    assert main([verb, "--help"]) == 0
    assert f"boxwright {verb}" in capfd.readouterr().out


def test_the_module_runs_as_the_command_does() -> None:
    answer = subprocess.run([sys.executable, "-m", "boxwright", "nope"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "boxwright: No such command 'nope'. (see: boxwright --help)\n"


def test_control_c_ends_with_130(tmp_path: Path) -> None:
    program = f"""
import sys, time
import boxwright.cli
from pathlib import Path
from boxwright.cli import main as frame
frame._FOLDER = Path({str(tmp_path)!r})
boxwright.cli.__path__.append({str(tmp_path)!r})
sys.exit(frame.main(["sleepy", "--json"]))
"""
    (tmp_path / "sleepy.py").write_text(
        "import time\nfrom boxwright.cli._options import JsonOption\n"
        "def sleepy(as_json: JsonOption = False) -> None:\n"
        "    'Sleep.'\n    print('asleep', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "asleep\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "boxwright: interrupted\n"
    assert time.monotonic() - started < 30
