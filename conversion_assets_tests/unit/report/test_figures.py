from xml.etree import ElementTree

from conversion_assets.domain.findings import Finding
from conversion_assets.domain.terms import Verdict
from conversion_assets.report.figures import draw_forest_plot
from conversion_assets_tests.documents import estimate


def finding(value="vp", lift=1.3, verdict=Verdict.ACT):
    return Finding("title_rankings.seniority", estimate(value, lift, verdict))


def test_a_plot_is_well_formed_whatever_the_labels_say():
    labels = ["<script>&", "'quoted'", '"', "日本語" * 20, "a|b"]
    root = ElementTree.fromstring(draw_forest_plot([finding(label) for label in labels]))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == labels[:2]
    assert texts[3].endswith("…")


def test_every_finding_has_a_dot_and_lifts_outside_stand_at_the_edge():
    plot = draw_forest_plot([finding(lift=lift) for lift in (0.0, 0.25, 1.0, 4.0, 90.0)])
    root = ElementTree.fromstring(plot)
    dots = root.findall(".//{*}path[@stroke-width='8']")
    places = [int(dot.split()[0]) for dot in dots[0].get("d").split("M")[1:]]
    assert places == [130, 130, 250, 370, 370]


def test_verdicts_differ_in_colour():
    plot = draw_forest_plot([finding(verdict=verdict) for verdict in Verdict])
    root = ElementTree.fromstring(plot)
    assert len({group.get("stroke") for group in root.findall(".//{*}g")}) == 3
