"""Where a sweep goes: its files and plots, refused before the work, and kept when it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan.errors import UserError
from moeplan.report.targets import STDOUT, check_file, check_folder, writing

if TYPE_CHECKING:
    from moeplan.report.sweep_files import SweepFile

__all__ = ["Outputs"]


class Outputs:
    """The files and plots that were asked for. Raises `UserError` for those that cannot be."""

    def __init__(
        self,
        csv: str | None,
        json: str | None,
        parquet: str | None,
        plot: Sequence[str],
        plots: Path | None,
    ) -> None:
        given = {"--csv": csv, "--json": json, "--parquet": parquet}
        self.named = {option: name for option, name in given.items() if name is not None}
        self.plot, self.folder = list(plot), plots or Path()
        self.files: list[SweepFile] = []
        self._check(plots)

    def _check(self, plots: Path | None) -> None:
        if self.named.get("--csv") == self.named.get("--json") == STDOUT:
            raise UserError("one output is needed: --csv - and --json - exclude each other")
        if self.named.get("--parquet") == STDOUT:
            raise UserError(
                "--parquet -: Parquet does not go to standard output, name a file such as "
                "sweep.parquet; --csv - does"
            )
        seen: dict[Path, str] = {}
        for option, name in self.named.items():
            if name == STDOUT:
                continue
            check_file(option, Path(name), f"sweep.{option.removeprefix('--')}")
            other = seen.setdefault(Path(name).resolve(), option)
            if other != option:
                raise UserError(f"{other} and {option} are the same file {name}: name two")
        if "--parquet" in self.named:
            from moeplan.report.sweep_parquet import check_pyarrow

            check_pyarrow()
        if plots is not None and str(plots) == STDOUT:
            raise UserError("--plots -: plots do not go to standard output, name a folder")
        if plots is not None and not self.plot:
            raise UserError(f"--plots {plots} is a folder for plots: say which by --plot X,Y")
        if self.plot:
            check_folder("--plots", self.folder)

    def check_model(self, models: Sequence[Any]) -> None:
        """Refuse to write over the file of a model that the sweep reads. `UserError`."""
        own = {Path(model).resolve() for model in models if isinstance(model, (str, Path))}
        for option, name in self.named.items():
            if name != STDOUT and Path(name).resolve() in own and Path(name).is_file():
                raise UserError(f"{option} {name} is the model's own file, and would be lost")

    def check_plots(self, known: Sequence[str]) -> None:
        """Refuse plots of columns that are not among those known. `UserError`."""
        if self.plot:
            from moeplan.report.plots.sweep import plot_columns

            for wanted in self.plot:
                plot_columns(wanted, known)

    @property
    def whole(self) -> bool:
        """Whether all points are needed at a time."""
        return "--json" in self.named or bool(self.plot)

    @property
    def on_stdout(self) -> bool:
        """Whether standard output is taken by a file."""
        return STDOUT in self.named.values()

    # ------------------------------------------------------------------------------ writing
    def begin(self) -> None:
        """Open the files, beside those of the same name, and make the plots' folder."""
        if self.plot:
            with writing("--plots", str(self.folder)):
                self.folder.mkdir(parents=True, exist_ok=True)
        if not self.named:
            return
        from moeplan.report.sweep_files import CsvFile, JsonFile, ParquetFile

        kinds: dict[str, Callable[[str, str], SweepFile]]
        kinds = {"--csv": CsvFile, "--json": JsonFile, "--parquet": ParquetFile}
        for option, name in self.named.items():
            self.files.append(kinds[option](option, name))

    def add(self, found: Any) -> None:
        """Write the next points to every file."""
        for file in self.files:
            file.add(found)

    def keep(self) -> list[Path]:
        """Put the files in their places, and return those that are not standard output."""
        for file in self.files:
            file.keep()
        return [Path(file.target) for file in self.files if file.target != STDOUT]

    def drop(self) -> None:
        """Leave nothing behind."""
        for file in self.files:
            with suppress(UserError, OSError):
                file.drop()

    def failed(self, problem: UserError, legal: int) -> UserError:
        """What to say where the work broke off: points with numbers are left in `NAME.part`."""
        kept = [file for file in self.files if file.points and file.part != file.target]
        if not legal or not kept:
            self.drop()
            return problem
        for file in kept:
            with suppress(UserError, OSError):
                file.close()
        said = " and ".join(f"{file.points:,} points are in {file.part}" for file in kept)
        return UserError(f"{problem}; {said}")

    def stopped(self, points: int, planned: int) -> str:
        """Keep what there is, and say in one sentence what that is."""
        of = f"{points:,} of {planned:,} points"
        if not points:
            self.drop()
            return "stopped before the first points were done, nothing is written"
        kept = [str(path) for path in self.keep()]
        kept += ["standard output"] if self.on_stdout else []
        verb = "has" if len(kept) == 1 else "have"
        said = f"{' and '.join(kept)} {verb} {of}" if kept else f"the table is of {of}"
        return f"stopped: {said}{', and no plot is drawn' if self.plot else ''}"
