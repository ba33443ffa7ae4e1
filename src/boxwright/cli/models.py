"""`boxwright models`: every detector that can be built, how large it is, and which checkpoints it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwright.cli._options import JsonOption
from boxwright.cli._output import print_json, stdout_console

if TYPE_CHECKING:
    from boxwright.models import ModelInfo


def models(as_json: JsonOption = False) -> None:
    """List every detector family and variant: size, cost, and the checkpoints it imports."""
    from boxwright.models import list_models

    infos = list_models()
    if as_json:
        print_json({"models": [_to_jsonable(info) for info in infos]})
    else:
        _print_table(infos)


def _to_jsonable(info: ModelInfo) -> dict[str, object]:
    return {
        "family": info.family,
        "variant": info.variant,
        "input_size_hw": info.size_hw,
        "parameters": info.num_parameters,
        "gflops": info.gflops,
        "imports": info.imports,
        "exportable": info.is_exportable,
    }


def _print_table(infos: tuple[ModelInfo, ...]) -> None:
    from rich.table import Table

    table = Table("family", "variant", caption="parameters and GFLOPs with 80 classes, at the input size")
    for header in ("input", "parameters", "GFLOPs"):
        table.add_column(header, justify="right")
    for info in infos:
        height, width = info.size_hw
        variant = info.variant if info.is_exportable else f"{info.variant} (PyTorch alone)"
        size, parameters = f"{height}x{width}", f"{info.num_parameters / 1e6:.2f} M"
        table.add_row(info.family, variant, size, parameters, f"{info.gflops:.2f}")
    console = stdout_console()
    console.print(table)
    for family, imports in {info.family: info.imports for info in infos}.items():
        console.print(f"{family} imports: {imports}", highlight=False, markup=False, soft_wrap=True)
