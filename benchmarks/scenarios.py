"""What is measured: scenes, methods, and the limits that the figures have to keep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trials import Symbols, Trial

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.surface import Surface

FROM_TRUTH = "ml-from-truth"
"""Maximum likelihood started at the truth: no estimator, but it splits search from noise."""

_CPU = "cpu_ms_per_scene"


@dataclass(frozen=True)
class Bar:
    """A limit.

    Args:
        method: whom it binds.
        column: of the table.
        high: most that it may read.
        low: least that it may read; None is no such limit.
        error: kind of error it is about; None is every kind.
    """

    method: str
    column: str
    high: float
    low: float | None = None
    error: str | None = None

    def applies(self, method: str, error: str) -> bool:
        """Whether a row is bound by it."""
        return method == self.method and self.error in (None, error)

    def holds(self, row: Mapping[str, float]) -> bool:
        """Whether a row keeps it; NaN does not."""
        value = row[self.column]
        return value <= self.high and (self.low is None or value >= self.low)


@dataclass(frozen=True)
class Case:
    """A kind of scene, who has to find its sources, and how well.

    Args:
        item: number of the requirement.
        trial: the scenes.
        n_scenes: how many.
        methods: names of `musicnet.localization.METHODS`, or `FROM_TRUTH`.
        errors: "azimuth_deg", "range_m", "position_m".
        bars: limits.
        known: whether methods are told the number of sources.
        slow: further methods, on ``n_slow`` scenes.
        n_slow: None is all.
        cap: metres; see `musicnet.metrics.matching.match`.
    """

    item: int
    trial: Trial
    n_scenes: int
    methods: tuple[str, ...]
    errors: tuple[str, ...] = ("position_m",)
    bars: tuple[Bar, ...] = ()
    known: bool = True
    slow: tuple[str, ...] = ()
    n_slow: int | None = None
    cap: float = 3.0

    def scaled(self, factor: float) -> "Case":
        """The same with limits of times ``factor`` as long."""
        bars = tuple(
            replace(bar, high=factor * bar.high) if bar.column == _CPU else bar for bar in self.bars
        )
        return replace(self, bars=bars)


def line(
    n_sensors: int, n_sources: int, snr_db: float, symbols: Symbols, n_snapshots: int
) -> Trial:
    """A half-wavelength line, far sources within 60 degrees, at least 15 apart."""
    return Trial(
        name=f"ULA {n_sensors}, {n_sources} {symbols}, T={n_snapshots}, {snr_db:g} dB",
        array=ArrayGeometry(n_sensors),
        n_sources=n_sources,
        snr_db=(snr_db, snr_db),
        symbols=symbols,
        n_snapshots=n_snapshots,
        separation_deg=15.0,
    )


def near_line(symbols: Symbols) -> Trial:
    """15 sensors over 7 m, two sources at 8 to 48 m, exact waves, off every grid."""
    return Trial(
        name=f"near ULA 15, 2 {symbols}, T=100, 20 dB",
        array=ArrayGeometry(15),
        n_sources=2,
        snr_db=(20.0, 20.0),
        symbols=symbols,
        n_snapshots=100,
        wavelength=1.0,
        range_m=(8.0, 48.0),
        separation_deg=15.0,
    )


def surface(
    side: int,
    n_sources: int,
    snr_db: tuple[float, float],
    symbols: Symbols,
    farthest: float,
    nearest: float = 0.5,
    *,
    equal_powers: bool = True,
) -> Trial:
    """A square surface; 8 antennas behind 8 x 8 cells, 16 behind 12 x 12."""
    kind = "pilots" if symbols == "pilot" else "data"
    levels = f"{snr_db[0]:g} dB" if snr_db[0] == snr_db[1] else f"{snr_db[0]:g} to {snr_db[1]:g} dB"
    powers = "" if equal_powers else ", unequal"
    return Trial(
        name=f"RIS {side}x{side}, K={n_sources}, {kind}, {levels}{powers}",
        array=ArrayGeometry(side, side),
        n_sources=n_sources,
        snr_db=snr_db,
        symbols=symbols,
        surface=Surface(n_antennas=8 if side == 8 else 16, n_codes=16),
        elevation_deg=(-30.0, 30.0),
        range_m=(nearest, farthest),
        equal_powers=equal_powers,
    )


def _bounds() -> list[Case]:
    """Item 1: the bound is the bound."""
    bars = (
        Bar(FROM_TRUTH, "nees", 1.1, 0.9),
        Bar(FROM_TRUTH, "rmse_over_bound", 1.07, 0.93),
    )
    trials = [
        surface(8, 1, (snr, snr), symbols, 5.0, 1.0)
        for symbols in ("pilot", "incoherent")
        for snr in (10.0, 20.0, 30.0)
    ]
    cases = [
        # a box close around the ranges would keep errors below the bound
        Case(
            1,
            replace(trial, searched=replace(trial.region, inverse_range=(0.0, 2.0))),
            800,
            (FROM_TRUTH, "nomp"),
            bars=bars,
        )
        for trial in trials
    ]
    bars = (Bar(FROM_TRUTH, "rmse_over_bound", 1.05, 0.95),)
    for snr in (10.0, 20.0):
        trial = line(8, 2, snr, "incoherent", 100)
        trial = replace(trial, bound="stochastic", name=f"{trial.name}, stochastic bound")
        cases.append(Case(1, trial, 2000, (FROM_TRUTH, "nomp"), ("azimuth_deg",), bars))
    return cases


def _lines() -> list[Case]:
    """Item 2: far fields on eight sensors."""
    every = (FROM_TRUTH, "nomp", "multistart", "root-music", "esprit", "music", "mvdr", "bartlett")
    azimuth = ("azimuth_deg",)
    cases = []
    for n_sources in (2, 3):
        for snr in (0.0, 10.0, 20.0):
            bars = (Bar("nomp", "rmse_over_bound", 1.05),) if snr == 10.0 else ()
            if snr == 10.0:
                bars += (Bar("root-music", "rmse_over_bound", 1.05),)
            trial = line(8, n_sources, snr, "incoherent", 100)
            cases.append(Case(2, trial, 1000, every, azimuth, bars))
    limits = {
        (3, 100, 20.0): Bar("nomp", "rmse_over_bound", 1.1),
        (3, 100, 0.0): Bar("multistart", "rmse_over_truth_start", 1.1),
        (2, 10, 0.0): Bar("multistart", "rmse_over_truth_start", 1.15),
        (3, 10, 0.0): Bar("multistart", "rmse_over_truth_start", 1.15),
    }
    for symbols in ("coherent", "in phase"):
        for n_sources, n_snapshots, snr in (*limits, (3, 100, 10.0)):
            bar = limits.get((n_sources, n_snapshots, snr)) if symbols == "coherent" else None
            trial = line(8, n_sources, snr, symbols, n_snapshots)
            # with few snapshots five scenes in a thousand rule the root mean square
            n_scenes = 6000 if n_snapshots == 10 else 1000
            cases.append(Case(2, trial, n_scenes, every, azimuth, () if bar is None else (bar,)))
    return cases


def _near_lines() -> list[Case]:
    """Item 3: near fields on fifteen sensors."""
    bars = (Bar("nomp", "rmse_over_bound", 1.1), Bar("nomp", _CPU, 3.0))
    errors = ("azimuth_deg", "range_m")
    methods = (FROM_TRUTH, "nomp", "multistart", "music", "mvdr", "bartlett")
    return [
        Case(3, near_line(symbols), 500, methods, errors, bars, cap=30.0)
        for symbols in ("incoherent", "coherent")
    ]


def _default_task() -> list[Case]:
    """Item 4: what the network will be held against."""
    bars = (
        Bar("nomp", "outliers", 0.060),
        Bar("nomp", _CPU, 7.5),
        Bar("multistart", "outliers", 0.03),
        Bar("multistart", _CPU, 14.0),
        Bar(FROM_TRUTH, "outliers", 0.003),
    )
    methods = (FROM_TRUTH, "nomp", "multistart")
    cases = [
        Case(
            4,
            surface(8, 4, (5.0, 20.0), "pilot", 5.0, equal_powers=equal),
            1920,
            methods,
            bars=bars,
        )
        for equal in (True, False)
    ]
    for n_sources in (1, 2, 3, 4):
        for snr in (0.0, 10.0, 20.0):
            trial = surface(8, n_sources, (snr, snr), "pilot", 5.0)
            cases.append(Case(4, trial, 640, methods))
    return cases


def _paper() -> list[Case]:
    """Item 5: the configuration that papers use."""
    cases = []
    for n_sources in (1, 2, 3):
        for snr in (10.0, 20.0):
            pilot = surface(12, n_sources, (snr, snr), "pilot", 10.0)
            data = surface(12, n_sources, (snr, snr), "incoherent", 10.0)
            methods = (FROM_TRUTH, "nomp", "multistart")
            bars = (Bar("nomp", "efficiency", 1.15),)
            cases.append(Case(5, pilot, 320, methods, bars=bars))
            bars = (Bar("nomp", "median_over_truth_start", 1.1),)
            slow = ("mvdr", "music", "bartlett")
            cases.append(Case(5, data, 320, methods, bars=bars, slow=slow, n_slow=64))
    return cases


def _counts() -> list[Case]:
    """Item 7: nobody says how many."""
    azimuth = ("azimuth_deg",)
    methods = ("nomp", "multistart", "root-music", "esprit", "music")
    cases = []
    for symbols, limit in (("incoherent", 0.98), ("coherent", 0.85)):
        bars = tuple(Bar(m, "count_right", 1.0, limit) for m in ("nomp", "multistart"))
        for n_sources in (1, 2, 3):
            trial = line(8, n_sources, 10.0, symbols, 100)
            cases.append(Case(7, trial, 1000, methods, azimuth, bars, known=False))
    for n_sources, limit in enumerate((0.95, 0.95, 0.93, 0.88), start=1):
        trial = surface(8, n_sources, (0.0, 0.0), "pilot", 5.0)
        bars = tuple(Bar(m, "count_right", 1.0, limit) for m in ("nomp", "multistart"))
        cases.append(Case(7, trial, 640, ("nomp", "multistart"), bars=bars, known=False))
    return cases


CASES = [*_bounds(), *_lines(), *_near_lines(), *_default_task(), *_paper(), *_counts()]
"""All that is measured for accuracy; `speed` has the rest."""
