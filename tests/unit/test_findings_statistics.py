"""The arithmetic of findings against scipy and statsmodels, which `make setup` brings."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict

import pytest

from genworker.core.parsers import FIRST, SECOND
from genworker.reports.claims import Factor, Finding
from genworker.reports.contrasts import (
    Cell,
    Crossed,
    Design,
    Estimate,
    Judge,
    central_tendencies,
    combos_against_rest,
    combos_needed,
    drift,
    estimate,
    holm,
    interaction,
    reliability,
    self_preferences,
    severities,
    shrink,
    visible_difference,
)
from genworker.reports.distributions import (
    binomial_tail,
    chi2_quantile,
    f_cumulative,
    f_quantile,
    t_quantile,
    t_tail,
)
from genworker.reports.pairwise import Comparison, place_biases, rank
from genworker.reports.words import direction, pairs_text

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed: make setup brings it")
np = pytest.importorskip("numpy")
sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed: make setup brings it")

JUDGES = [Judge("worth", "m0"), Judge("worth", "m1"), Judge("worth", "j2"), Judge("style", "j2")]


def crossed(seed: int = 1, *, combos: int = 8, holes: float = 0.0) -> Design:
    """A design with known coordinates and random scores."""
    draw = random.Random(seed)
    cells: dict[Cell, dict[int, float]] = {}
    for c in range(combos):
        for d in range(3):
            for e in range(2):
                for a in range(3):
                    marks = {
                        judge: draw.gauss(6 + d / 3 + c / 5, 1)
                        for judge in range(len(JUDGES))
                        if draw.random() >= holes
                    }
                    if marks:
                        cells[Cell(f"c{c}", f"d{d}", f"e{e}", f"m{a}")] = marks
    return Design(JUDGES, cells)


def test_tails_and_quantiles() -> None:
    for freedom in (1, 2, 3, 7, 29, 400):
        for p in (0.51, 0.8, 0.975, 0.9999):
            assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)
            assert t_quantile(1 - p, freedom) == pytest.approx(-t_quantile(p, freedom), rel=1e-9)
        for t in (0.0, 0.3, 2.1, 40.0):
            assert t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9, abs=1e-300)
        assert chi2_quantile(0.2, freedom + 4) == pytest.approx(stats.chi2.ppf(0.2, freedom + 4), rel=0.01)
    for above, below in ((9, 29), (30, 60), (199, 597)):
        for p in (0.025, 0.5, 0.975):
            assert f_quantile(p, above, below) == pytest.approx(stats.f.ppf(p, above, below), rel=1e-9)
        assert f_cumulative(1.7, above, below) == pytest.approx(stats.f.cdf(1.7, above, below), rel=1e-9)
    for trials in (1, 9, 60, 1000):
        for successes in (0, trials // 3, trials // 2, trials):
            known = stats.binomtest(successes, trials).pvalue
            assert binomial_tail(successes, trials) == pytest.approx(known, rel=1e-9)


def test_holm() -> None:
    from statsmodels.stats.multitest import multipletests

    draw = random.Random(2)
    values = [draw.random() ** 3 for _ in range(30)] + [0.0, 1.0, 0.01, 0.01]
    assert holm(values) == pytest.approx(list(multipletests(values, method="holm")[1]))


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_a_paired_contrast_is_a_t_test_of_a_number_per_combo(holes: float) -> None:
    design = crossed(holes=holes)
    by_place: dict[tuple[str, ...], list[float]] = defaultdict(list)
    pairs = wins = 0
    for cell, marks in design.cells.items():
        other = design.cells.get(cell._replace(draft="d2"))
        if cell.draft == "d0" and other is not None:
            away = [marks[judge] - other[judge] for judge in marks if judge in other]
            pairs, wins = pairs + len(away), wins + sum(value > 0 for value in away)
            by_place[cell.combo, cell.essay, cell.author] += away
    by_combo: dict[str, list[float]] = defaultdict(list)
    for place, values in by_place.items():
        if values:
            by_combo[place[0]].append(statistics.fmean(values))
    units = [statistics.fmean(values) for values in by_combo.values()]
    found = Crossed(design, (1,)).pair(("d0",), ("d2",))
    assert found is not None
    test = stats.ttest_1samp(units, 0)
    assert (found.difference, found.p) == pytest.approx((statistics.fmean(units), test.pvalue))
    assert found.interval() == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.clusters, found.unit, found.pairs, found.wins) == (8, "combo", pairs, wins)


def test_authors_are_not_compared_by_their_own_judges() -> None:
    design = crossed()
    loud = Design(JUDGES, {
        cell: {j: value + (50 if JUDGES[j].model == cell.author else 0) for j, value in marks.items()}
        for cell, marks in design.cells.items()
    })  # fmt: skip
    factor = (Cell._fields.index("author"),)
    quiet = Crossed(design, factor).pair(("m0",), ("m1",))
    assert Crossed(loud, factor).pair(("m0",), ("m1",)) == quiet
    assert quiet is not None
    assert quiet.pairs == 8 * 3 * 2 * 2, "two of the four judges are m0 and m1"


def test_the_rest_is_the_mean_of_the_contrasts_with_each_other_level() -> None:
    factor = Crossed(crossed(), (1,))
    rest = factor.rest(("d0",))
    one, other = factor.pair(("d0",), ("d1",)), factor.pair(("d0",), ("d2",))
    assert rest is not None
    assert one is not None
    assert other is not None
    assert rest.difference == pytest.approx((one.difference + other.difference) / 2)
    assert rest.pairs == one.pairs + other.pairs


def test_with_few_combos_the_drafts_are_counted_and_with_two_drafts_nothing_is_said() -> None:
    few = Crossed(crossed(combos=3), (2,)).pair(("e0",), ("e1",))
    assert few is not None
    assert (few.unit, few.clusters) == ("draft", 3 * 3 * 3)
    one = crossed(combos=1)
    two = Design(
        JUDGES,
        {cell: marks for cell, marks in one.cells.items() if cell.draft != "d2" and cell.author == "m0"},
    )
    assert Crossed(two, (2,)).pair(("e0",), ("e1",)) is None


def test_combos_against_the_rest_are_the_contrasts_of_a_two_way_analysis() -> None:
    design = crossed(combos=6)
    table: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell, marks in design.cells.items():
        table[cell.combo, cell.draft] += marks.values()
    keys = list(table)
    rows = sorted({combo for combo, _ in keys})
    columns = sorted({draft for _, draft in keys})
    matrix = np.array([
        [1.0, *(combo == row for row in rows[1:]), *(draft == column for column in columns[1:])]
        for combo, draft in keys
    ], dtype=float)  # fmt: skip
    fitted = sm.OLS([statistics.fmean(table[key]) for key in keys], matrix).fit()
    found = combos_against_rest(design)
    for number, row in enumerate(rows):
        weights = np.zeros(matrix.shape[1])
        for other in range(1, len(rows)):
            weights[other] = 1.0 if other == number else -1 / (len(rows) - 1)
        test = fitted.t_test(weights)
        estimate_ = found[row]
        assert estimate_.difference == pytest.approx(float(test.effect[0]))
        assert estimate_.error == pytest.approx(float(test.sd[0, 0]))
        assert estimate_.p == pytest.approx(float(test.pvalue))


def test_combos_with_missing_scores_are_compared_as_if_all_were_there() -> None:
    """Without noise an additive table is found again, whatever is missing of it."""
    draw = random.Random(5)
    cells = {
        Cell(f"c{c}", f"d{d}", f"e{e}", "m9"): {
            judge: 5 + c + d / 2 + e + judge / 3 for judge in range(len(JUDGES)) if draw.random() > 0.3
        }
        for c in range(5) for d in range(3) for e in range(3)
    }  # fmt: skip
    found = combos_against_rest(Design(JUDGES, {cell: marks for cell, marks in cells.items() if marks}))
    assert {combo: round(value.difference, 4) for combo, value in found.items()} == {
        f"c{c}": round((c - 2) * 5 / 4, 4) for c in range(5)
    }


def test_an_interaction_is_a_difference_of_differences() -> None:
    design = crossed()
    found = interaction(design, (1, "d0", "d1"), (2, "e0", "e1"))
    assert found is not None
    units = []
    for c in range(8):
        values = []
        for author in ("m0", "m1", "m2"):
            at = {
                (d, e): design.cells[Cell(f"c{c}", d, e, author)] for d in ("d0", "d1") for e in ("e0", "e1")
            }
            values += [
                (at["d0", "e0"][j] - at["d1", "e0"][j]) - (at["d0", "e1"][j] - at["d1", "e1"][j])
                for j in range(len(JUDGES))
            ]
        units.append(statistics.fmean(values))
    assert found.difference == pytest.approx(statistics.fmean(units))
    assert found.p == pytest.approx(stats.ttest_1samp(units, 0).pvalue)


def test_judges_are_compared_on_texts_by_third_authors() -> None:
    """Severities and favours without noise are found again, and neither is taken for the other."""
    severity, favour = {"m0": 0.5, "m1": -0.25, "j2": 0.0}, {"m0": 0.9, "m1": 0.0, "j2": 0.0}
    quality = {"m0": 1.0, "m1": -1.0, "m2": 0.3}
    cells = {
        Cell(f"c{c}", f"d{d}", f"e{e}", author): {
            place: 6 + c / 7 + worth + severity[judge.model] + (favour[judge.model] if judge.model == author else 0)
            for place, judge in enumerate(JUDGES)
        }
        for c in range(6) for d in range(2) for e in range(2) for author, worth in quality.items()
    }  # fmt: skip
    design = Design(JUDGES, cells)
    by_judge = {judge: round(value.difference, 6) for judge, value in severities(design).items()}
    assert by_judge == {"m0": 0.625, "m1": -0.5, "j2": -0.125}
    own = {judge: round(value.difference, 6) for judge, value in self_preferences(design).items()}
    assert own == {"m0": 0.9, "m1": 0.0}, "j2 writes nothing"


def test_a_judge_that_keeps_to_the_middle_is_found() -> None:
    draw = random.Random(3)
    judges = [Judge("worth", name) for name in ("a", "b", "c")]
    cells = {}
    for c in range(8):
        for d in range(8):
            away = draw.gauss(0, 1)
            cells[Cell(f"c{c}", f"d{d}", "e", "m")] = {0: 5 + away, 1: 5 + away * 0.5, 2: 5 - away}
    found = central_tendencies(Design(judges, cells))
    assert found["b"].difference == pytest.approx(math.log(0.5))
    assert found["a"].difference == pytest.approx(-math.log(0.5) / 2)
    assert found["b"].p < 0.001


def test_reliability_is_that_of_an_analysis_of_variance() -> None:
    draw = random.Random(4)
    table = []
    for _ in range(40):
        worth = draw.gauss(0, 1)
        table.append([worth + judge / 2 + draw.gauss(0, 1) for judge in range(4)])
    n, k = 40, 4
    values = [value for row in table for value in row]
    matrix = np.array([
        [1.0, *(essay == other for other in range(1, n)), *(judge == other for other in range(1, k))]
        for essay in range(n) for judge in range(k)
    ], dtype=float)  # fmt: skip
    residual = sm.OLS(values, matrix).fit().mse_resid
    between = k * statistics.variance(statistics.fmean(row) for row in table)
    found = reliability(table)
    assert found is not None
    ratio = between / residual
    assert found.value == pytest.approx(1 - 1 / ratio)
    assert found.low == pytest.approx(1 - stats.f.ppf(0.975, n - 1, (n - 1) * (k - 1)) / ratio)
    assert found.high == pytest.approx(1 - stats.f.ppf(0.025, n - 1, (n - 1) * (k - 1)) / ratio)
    fewest, middle, most = found.needed
    assert fewest is not None
    assert middle is not None
    assert most is not None
    assert fewest <= middle <= most
    assert reliability(table[:9]) is None


def test_drift_is_a_slope_within_combos_with_errors_by_combo() -> None:
    draw = random.Random(6)
    points = {
        f"c{c}": [(x := draw.random(), 0.8 * x + c / 3 + draw.gauss(0, 0.5)) for _ in range(9)]
        for c in range(10)
    }
    rows = [(combo, x, y) for combo, values in points.items() for x, y in values]
    combos = list(points)
    matrix = np.array([[x, *(combo == other for other in combos)] for combo, x, _ in rows], dtype=float)
    fitted = sm.OLS([y for *_, y in rows], matrix).fit(
        cov_type="cluster",
        cov_kwds={"groups": [combos.index(combo) for combo, *_ in rows], "use_correction": False},
    )
    found = drift(points)
    assert found is not None
    assert found.difference == pytest.approx(float(fitted.params[0]))
    assert found.error == pytest.approx(float(fitted.bse[0]) * math.sqrt(10 / 9))
    in_turn = {
        f"c{c}": [(c / 10 + n / 1000, c / 10 + draw.gauss(0, 0.1)) for n in range(9)] for c in range(10)
    }
    turned = drift(in_turn)
    assert turned is not None
    means = [tuple(map(statistics.fmean, zip(*values, strict=True))) for values in in_turn.values()]
    line = stats.linregress(*zip(*means, strict=True))
    assert (turned.difference, turned.error) == pytest.approx((line.slope, line.stderr))
    assert drift({f"c{c}": [(0.1, 1.0)] for c in range(7)}) is None


def test_the_best_of_many_is_drawn_towards_the_mean() -> None:
    """Repeated with the truth known: raw it is too high by half a mark, shrunken it is right on average."""
    raw, drawn, held = [], [], 0
    for seed in range(200):
        draw = random.Random(seed)
        true = {f"l{n}": draw.gauss(6, 0.5) for n in range(30)}
        levels = {level: [draw.gauss(worth, 1.0) for _ in range(4)] for level, worth in true.items()}
        found = shrink(levels)
        assert found
        best = max(levels, key=lambda level: statistics.fmean(levels[level]))
        raw.append(statistics.fmean(levels[best]) - true[best])
        drawn.append(found[best].value - true[best])
        low, high = found[best].interval()
        held += low <= true[best] <= high
    assert statistics.fmean(raw) > 0.4
    assert abs(statistics.fmean(drawn)) < 0.1
    assert held >= 0.9 * 200
    assert shrink({f"l{n}": [1.0] for n in range(9)}) is None, "one essay a level says nothing of the noise"
    assert shrink({f"l{n}": [1.0, 3.0] for n in range(9)}) == {}, "levels that cannot be told apart"


def test_how_many_combos_a_difference_needs() -> None:
    from statsmodels.stats.power import TTestPower

    sure = Estimate(0.4, 1.0 / math.sqrt(100_000), 99_999, 100_000, "combo", 1.0)
    known = TTestPower().solve_power(effect_size=0.4, alpha=0.05, power=0.8)
    count = combos_needed(sure, 0.4)
    assert count is not None
    assert abs(count - known) <= 2
    pilot = estimate([0.1, 0.9, -0.2, 0.5, 0.3, 1.2], "combo")
    assert pilot is not None
    more = combos_needed(pilot, pilot.difference)
    plain = TTestPower().solve_power(effect_size=pilot.difference / pilot.deviation, alpha=0.05, power=0.8)
    assert more is not None
    assert more > plain, "a small pilot may have been lucky"
    assert visible_difference(pilot) == pytest.approx(
        (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * pilot.deviation / math.sqrt(6)
    )
    assert combos_needed(pilot, 0.0) is None


def test_ranks_are_those_of_a_logistic_regression_with_a_term_for_the_place() -> None:
    draw = random.Random(8)
    worth = {"a": 0.8, "b": 0.0, "c": -0.5, "d": 0.2}
    compared = [
        Comparison("j", one, other, FIRST if draw.random() < 1 / (1 + math.exp(-(x - y + 0.4))) else SECOND, r)
        for one, x in worth.items() for other, y in worth.items() if one != other for r in range(30)
    ]  # fmt: skip
    items = list(worth)
    matrix = np.array([
        [1.0, *((c.first == item) - (c.second == item) for item in items[1:])] for c in compared
    ], dtype=float)  # fmt: skip
    fitted = sm.Logit([c.winner == FIRST for c in compared], matrix).fit(disp=False)
    known = dict(zip(items, [0.0, *map(float, fitted.params[1:])], strict=True))
    middle = statistics.fmean(known.values())
    for ranked in rank(compared):
        assert ranked.worth == pytest.approx((known[ranked.item] - middle) * 4 / 3, abs=0.01)
    (bias,) = place_biases(compared)
    assert bias.estimate is not None
    low, high = bias.estimate.interval()
    assert low < 0.4 < high
    assert bias.pairs == 6 * 30


def test_pairs_are_those_of_the_difference_also_when_most_went_the_other_way() -> None:
    """A few large losses can outweigh many small wins: the mean is below 0, the wins are most."""
    found = [
        Finding(Factor.ESSAY, "one", "two", Estimate(difference, 0.1, 9, 10, "combo", 0.3, 60, 40, 5), 0.01)
        for difference in (-0.5, 0.5)
    ]
    assert [pairs_text(each) for each in found] == ["in 15 of 60 pairs", "in 40 of 60 pairs"]
    assert [direction(each) for each in found] == ["worse", "better"]


def planted_pairs(seed: int, bias: float) -> tuple[dict[str, float], list[Comparison]]:
    """Six texts of known worth, each pair in both orders four times, by a judge that favours a place."""
    draw = random.Random(seed)
    worth = {f"t{number}": draw.gauss(0, 0.8) for number in range(6)}
    compared = [
        Comparison("j", one, two, FIRST if draw.random() < 1 / (1 + math.exp(-(x - y + bias))) else SECOND, r)
        for one, x in worth.items() for two, y in worth.items() if one != two for r in range(4)
    ]  # fmt: skip
    return worth, compared


@pytest.mark.slow
def test_planted_ranks_and_position_bias_are_recovered_in_95_of_100_seeds() -> None:
    bias, held, spans, wrong = 0.5, 0, [], 0
    for seed in range(100):
        worth, compared = planted_pairs(seed, bias)
        middle = statistics.fmean(worth.values())
        (place,) = place_biases(compared)
        assert place.estimate is not None
        low, high = place.estimate.interval()
        held += low <= bias <= high
        for ranked in rank(compared):
            true = (worth[ranked.item] - middle) * 6 / 5
            assert ranked.estimate is not None
            low, high = ranked.estimate.interval()
            spans.append(low <= true <= high)
            wrong += (low > 0 > true) or (high < 0 < true)
    assert held >= 95
    assert sum(spans) >= 0.95 * len(spans)
    assert wrong <= 5


def test_ranks_are_those_of_choix_where_no_place_is_favoured() -> None:
    choix = pytest.importorskip("choix", reason="choix is not installed: make setup brings it")
    worth, compared = planted_pairs(3, 0.0)
    # Each answer once more with the places turned: what is left of the place's term is nothing.
    turned = [
        c._replace(first=c.second, second=c.first, winner=SECOND if c.winner == FIRST else FIRST, replicate=9)
        for c in compared
    ]
    names = list(worth)
    wins = [
        (names.index(c.first), names.index(c.second))
        if c.winner == FIRST
        else (names.index(c.second), names.index(c.first))
        for c in [*compared, *turned]
    ]
    known = choix.opt_pairwise(len(names), wins)
    for ranked in rank([*compared, *turned]):
        mine = known[names.index(ranked.item)] - known.mean()
        assert ranked.worth == pytest.approx(mine * 6 / 5, abs=0.01)


def test_texts_that_were_never_compared_have_ranks_of_their_own() -> None:
    def beats(one: str, other: str) -> list[Comparison]:
        return [
            Comparison("j", *pair, winner, 1)
            for pair, winner in (((one, other), FIRST), ((other, one), SECOND))
        ]

    found = rank([*beats("a", "b"), *beats("b", "c"), *beats("x", "y")])
    assert [(ranked.item, ranked.group) for ranked in found] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("x", 1),
        ("y", 1),
    ]
    assert found[3].worth == pytest.approx(-found[4].worth)
