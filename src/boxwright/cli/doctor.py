"""`boxwright doctor`: what this machine has, what is missing and what brings it, and what is wrong with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxwright.cli._options import DataIfAnyOption, JsonOption
from boxwright.cli._output import print_json, progress_bar, stdout_console
from boxwright.core.errors import AnswerIsNoError

if TYPE_CHECKING:
    from boxwright.cli._installation import Engine, MissingExtra
    from boxwright.core.machine import Machine
    from boxwright.data import Report


def doctor(
    data: DataIfAnyOption = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data set to check; all that there are by default.")
    ] = None,
    build_plugins: Annotated[
        bool,
        typer.Option(
            "--build-plugins", help="Compile what exports with --nms plugin need, for this OpenVINO and this TensorRT."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine has and lacks, and with --data what is wrong with a data set."""
    if build_plugins:
        _build_plugins(as_json)
    elif data is not None:
        _examine_data(data, split, as_json)
    else:
        _examine_machine(as_json)


def _examine_machine(as_json: bool) -> None:
    """Report engines, CPU, GPUs and missing extras."""
    import boxwright
    from boxwright.cli._installation import find_engines, find_missing_extras
    from boxwright.core.kernels import instruction_sets
    from boxwright.core.machine import describe_machine

    machine, engines, missing, kernels = describe_machine(), find_engines(), find_missing_extras(), instruction_sets()
    if as_json:
        print_json(
            {
                "version": boxwright.__version__,
                "native_kernels": {"built": bool(kernels), "instruction_sets": kernels},
                "machine": machine,
                "engines": engines,
                "missing_extras": missing,
            }
        )
        return
    console = stdout_console()
    for line in (*_machine_lines(machine), _kernel_line(kernels), "", *_engine_lines(engines), *_extra_lines(missing)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _build_plugins(as_json: bool) -> None:
    """Compile the plugins of the engines that are here, unless that was done before."""
    from boxwright.cli._output import stderr_console
    from boxwright.core.errors import InputError, UnsupportedError
    from boxwright.runtimes.openvino_plugin import build_openvino_plugin
    from boxwright.runtimes.plugin_build import BUILD_COMMAND
    from boxwright.runtimes.tensorrt_plugin import build_tensorrt_plugin

    stderr_console().print("a plugin that was not built before takes about a minute to compile", highlight=False)
    plugins: dict[str, dict[str, str | bool | None]] = {}
    for engine, build in (("openvino", build_openvino_plugin), ("tensorrt", build_tensorrt_plugin)):
        try:
            library, is_new = build()
        except InputError as error:
            plugins[engine] = {"path": None, "built_now": False, "problem": str(error)}
        else:
            plugins[engine] = {"path": str(library), "built_now": is_new, "problem": None}
    if all(plugin["path"] is None for plugin in plugins.values()):
        raise UnsupportedError(
            BUILD_COMMAND,
            expected="OpenVINO or TensorRT, and what its plugin is built with",
            got="; ".join(f"for {engine}: {plugin['problem']}" for engine, plugin in plugins.items()),
            fix="mend what is said of the engine that you use",
        )
    if as_json:
        print_json({"plugins": plugins})
        return
    for engine, plugin in plugins.items():
        status = "built" if plugin["built_now"] else "was built before"
        line = f"plugin {engine}: {status}: {plugin['path']}"
        if plugin["problem"] is not None:
            line = f"plugin {engine}: not built: {plugin['problem']}"
        stdout_console().print(line, highlight=False, markup=False, soft_wrap=True)


def _machine_lines(machine: Machine) -> list[str]:
    present = [feature for feature, is_there in machine.cpu_features.items() if is_there]
    absent = [feature for feature, is_there in machine.cpu_features.items() if not is_there]
    memory = "" if machine.memory_mb is None else f", {machine.memory_mb / 1024:.1f} GiB"
    lines = [
        f"machine: {machine.system}, {machine.architecture}, Python {machine.python}",
        f"CPU: {machine.cpu_name}, {machine.num_cores} cores{memory}",
    ]
    if machine.cpu_features:
        lines.append(f"CPU has: {', '.join(present) or 'none of the features below'}")
        lines.append(f"CPU lacks: {', '.join(absent) or 'none of the features that matter'}")
    else:
        lines.append("CPU features: unknown on this system")
    for gpu in machine.gpus:
        capability = f"compute capability {gpu.compute_capability}, driver {gpu.driver_version}"
        lines.append(f"GPU: {gpu.name}, {gpu.memory_mb / 1024:.0f} GiB, {capability}")
    if not machine.gpus:
        lines.append(f"GPU: none of NVIDIA's ({machine.gpu_problem or 'no nvidia-smi'})")
    return lines


def _kernel_line(kernels: list[str]) -> str:
    if kernels:
        return f"compiled kernels: built, best first: {', '.join(kernels)}"
    return "compiled kernels: missing, the slower numpy reference serves; reinstall boxwright with a C++17 compiler"


def _engine_lines(engines: tuple[Engine, ...]) -> list[str]:
    """A line an engine: name, status, and what is to be known or done."""
    lines = []
    for engine in engines:
        remark = engine.problem or engine.install or ", ".join(engine.devices)
        facts = " ".join(part for part in (engine.version, f"({remark})" if remark else None) if part)
        lines.append(f"engine {engine.name}: {engine.status} {facts}".rstrip())
    return lines


def _extra_lines(missing: tuple[MissingExtra, ...]) -> list[str]:
    if not missing:
        return ["", "extras: complete"]
    return [
        "",
        *(
            f"to {extra.purpose}: {extra.install} (brings what is missing: {', '.join(extra.modules)})"
            for extra in missing
        ),
    ]


def _examine_data(directory: Path, split: str | None, as_json: bool) -> None:
    """Report what is wrong with a data set; exit status 3 where anything is."""
    from boxwright.data import list_splits

    splits = [split] if split is not None else list(list_splits(directory))
    reports = [_check_split(directory, name) for name in splits]
    if as_json:
        print_json({"data": str(directory), "splits": [report.to_jsonable() for report in reports]})
    else:
        _print_reports(reports)
    num_problems = sum(len(report.problems) for report in reports)
    if num_problems:
        found = "1 problem found, named above with its file"
        if num_problems > 1:
            found = f"{num_problems} problems found, named above with their files"
        raise AnswerIsNoError(f"{directory}: {found}")


def _check_split(directory: Path, split: str) -> Report:
    """Check one part of a data set, every image of it, with a progress bar."""
    from boxwright.data import check_dataset, load_dataset

    dataset = load_dataset(directory, split, allow_empty=True)
    with progress_bar() as progress:
        task = progress.add_task(f"checking {split}", total=None)

        def show(num_done: int, num_all: int) -> None:
            progress.update(task, completed=num_done, total=num_all)

        return check_dataset(dataset, on_progress=show)


def _print_reports(reports: list[Report]) -> None:
    console = stdout_console()
    for report in reports:
        for line in report.to_lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
