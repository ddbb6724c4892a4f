from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from gradinversion.settings.run import load_config
from gradinversion.sweep.accuracy import Accuracy
from gradinversion.sweep.facts import AuditFacts
from gradinversion.sweep.page import render
from gradinversion.sweep.report import write_audit
from gradinversion.sweep.results import CellResult, State
from gradinversion.sweep.verdict import judge_grid

Facts = Callable[..., AuditFacts]
PROVENANCE = {"gradinversion": "0.1", "date": "2026-01-01"}


class Reader(HTMLParser):
    """Text, tables and links of a page; whether every element that is opened is closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.classes: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.classes += (found.get("class") or "").split()
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(facts: AuditFacts) -> tuple[Reader, str]:
    page = render(facts, judge_grid(facts.grid, facts.results, facts.prices), PROVENANCE)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def test_the_verdict_the_maps_and_the_commands_are_on_the_page(facts: Facts) -> None:
    reader, text = read(facts())
    assert "At your settings (batch 4, no defence, eval BN, untrained) 3 of 4 images leak" in text
    assert "The smallest change that stops the image leak: noise 0.1 (" in text
    for heading in ("Leaked share", "Image identifiability precision (IIP)", "Label leakage", "To repeat it"):
        assert heading in text
    assert "python run.py audit" in text
    # Per map: the framed cell of the user's settings.
    assert reader.classes.count("base") == 3 + 1


def test_where_nothing_leaks_nothing_is_said_to_stop_it(facts: Facts) -> None:
    _, text = read(facts(leaked=lambda words: 0))
    assert "What would stop it" not in text
    assert "The other settings" in text


def test_the_colour_of_a_cell_grows_with_its_number(facts: Facts) -> None:
    reader, _ = read(facts())
    # 3 of 4 and 3 of 8 leak.
    assert {"h8", "h4", "h0"} <= set(reader.classes)


def test_label_leakage_is_classes_counts_and_instances(facts: Facts, tmp_path: Path) -> None:
    found = facts()
    _, text = read(found)
    assert text.count("75% classes 50% / 100% counts 25%") == len(found.grid.cells)
    assert "75% 50% / 100% 25% 2 × 200" in text  # the row of a cell
    assert "earlier version" not in text
    write_audit(found)
    (scores,) = {json.dumps(cell["label_scores"]) for cell in audit_json(tmp_path)["cells"]}
    assert json.loads(scores) == {
        "class_presence": {"precision": 1.0, "recall": 0.5},
        "class_count": 0.25,
        "instances": 0.75,
    }


def test_cells_of_an_earlier_version_lack_classes_and_counts_and_the_page_says_so(facts: Facts, tmp_path: Path) -> None:
    found = facts(leaked=lambda words: None if words["client.batch_size"] == "8" else 1)
    old = [name for name, result in found.results.items() if result.state is State.DONE][:2]
    unscored = {name: replace(found.results[name], label_scores=None) for name in old}
    found = replace(found, results={**found.results, **unscored})
    _, text = read(found)
    assert "2 cells were finished by an earlier version" in text
    assert "75% – – 2 × 200" in text
    assert text.count("counts 25%") == 1
    write_audit(found)
    assert [cell["label_scores"] is None for cell in audit_json(tmp_path)["cells"]].count(False) == 1


def test_links_lead_to_the_cells_and_nothing_is_fetched(facts: Facts) -> None:
    found = facts()
    reader, _ = read(found)
    assert set(reader.links) == {f"cells/{cell.name}/report.html" for cell in found.grid.cells}
    assert reader.sources
    assert all(source.startswith("data:image/png") for source in reader.sources)


def test_a_cell_that_failed_is_told_with_its_reason_and_has_no_number(facts: Facts) -> None:
    reader, text = read(facts(leaked=lambda words: None if words["client.batch_size"] == "8" else 1))
    assert text.count("holds 2 images and the batch needs 8") == 1
    assert "3 cells (failed): the image folder" in text
    assert "3 of 6" in text
    assert reader.classes.count("missing") == 3 * 3
    assert not any("batch-8" in link for link in reader.links)


def test_what_the_time_took_away_is_said(facts: Facts) -> None:
    note = "250 steps instead of 1,000: a weaker attack, which may miss a leak."
    found = facts(notes=(note,))
    skipped = CellResult(State.SKIPPED, "It does not fit budget=1m.")
    found = replace(found, results={**found.results, found.grid.cells[-1].name: skipped})
    _, text = read(found)
    assert note in text
    assert "It does not fit budget=1m." in text


def test_the_cost_in_accuracy(facts: Facts) -> None:
    def trained(*values: float) -> Accuracy:
        return Accuracy(values, 300, 4, 160, 40, 0.5, 0.02)

    found = facts(
        accuracies={"no defence": trained(0.9, 0.8), "noise 0.1": trained(0.7, 0.6)},
        accuracy_problems={"noise 1": "the folder is gone"},
    )
    assert found.accuracy_costs == {"noise 0.1": pytest.approx(0.2)}
    _, text = read(found)
    assert "no defence 85.0 % 80.0 – 90.0 % –" in text
    assert "noise 0.1 65.0 % 60.0 – 70.0 % 20.0" in text
    assert "the folder is gone" in text
    assert "trained for 300 steps of batch 4 on 160 images" in text


def test_which_images_are_at_risk_and_from_which_stage_on(facts: Facts) -> None:
    found = facts("sweep.states=untrained,late.pt")
    late = next(cell for cell in found.grid.cells if cell.title == "batch 4, no defence, eval BN, late")
    risks = tuple(replace(risk, level="weak", lead=1.5) for risk in found.results[late.name].risks)
    changed = {**found.results, late.name: replace(found.results[late.name], risks=risks)}
    _, text = read(replace(found, results=changed))
    assert "cat leaked +8.4 dB 2.31 40% weakly visible +1.5 dB 2.31 40%" in text
    assert "dog not shown -0.5 dB 2.10 – weakly visible +1.5 dB 2.10 –" in text


def test_hostile_names_stay_text(facts: Facts) -> None:
    hostile = "<script>alert(1)</script>"
    found = facts(f"sweep.states={hostile}.pt", f"client.images={hostile}")
    results = {
        name: replace(result, sentence=hostile, worst=replace(result.worst, name=hostile)) if result.worst else result
        for name, result in found.results.items()
    }
    reader, text = read(replace(found, results=results))
    assert hostile in text
    assert "script" not in reader.open


def test_an_audit_of_which_nothing_ended_has_a_page(facts: Facts) -> None:
    _, text = read(facts(leaked=lambda words: None))
    assert "nothing is known" in text
    assert "No cell has this number." in text


def test_many_cells_are_folded_away(facts: Facts) -> None:
    _, text = read(facts("sweep.batch_sizes=1,2,3,4,5,6,7,8"))
    assert "The other 12 cells" in text
    assert "The other 11 changes" in text


def audit_json(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "out" / "audit.json").read_text())
    return values


def test_both_files_are_written_and_the_numbers_are_json(facts: Facts, tmp_path: Path) -> None:
    found = facts()
    verdict = write_audit(found)
    numbers = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (tmp_path / "out" / "audit.html").read_text().startswith("<!doctype html>")
    assert numbers["verdict"].startswith(verdict.headline)
    assert [cell["leaked_share"] for cell in numbers["cells"]][:3] == [0.75, 0.375, 0.0]
    assert numbers["cells"][0]["levels"]["defence"] == "no defence"
    assert {change["effect"] for change in numbers["changes"]} == {"leaks", "no leak shown"}


def test_the_commands_give_the_cells_and_the_audit_again(facts: Facts) -> None:
    found = facts("client.images=my photos; $HOME")
    for cell in found.grid.cells:
        command = found.command(cell.name)
        assert command is not None
        words = shlex.split(command.removeprefix("python run.py "))
        assert load_config(words) == found.configs[cell.name]
    words = shlex.split(found.whole_command.removeprefix("python run.py audit "))
    assert load_config(words) == found.config


def test_no_unfilled_place_is_left(facts: Facts) -> None:
    found = facts()
    page = render(found, judge_grid(found.grid, found.results), PROVENANCE)
    assert not re.search(r"\{\{|\{%|None|nan\b", page)


def test_what_is_no_setting_is_told_and_framed(facts: Facts, tmp_path: Path) -> None:
    words = ("sweep.batch_sizes=4", "sweep.defences=none,noise:1", "sweep.axes=agents.count:4,1")
    found = facts(*words, leaked=lambda words: 3 if words["agents.count"] == "4" else 0)
    reader, text = read(found)
    assert "No settings of the client: agents.count (how the server attacks)." in text
    assert "(the worst of the frames counts)" in text
    assert "images that show, at worst" in text
    assert "count 1 no leak shown" not in text
    assert "cat leaked +8.4 dB 2.31 40% leaked" in text  # a column for each attack
    assert "earliest at which it was seen" not in text
    # Both cells at the user's settings, in each of three maps and in the list of cells.
    assert reader.classes.count("base") == 2 * (3 + 1)
    write_audit(found)
    numbers = audit_json(tmp_path)
    assert [change["name"] for change in numbers["changes"]] == ["noise 1"]
    assert numbers["worst_case"].startswith("No settings of the client: agents.count")


def test_changes_are_listed_with_price_and_labels(facts: Facts, tmp_path: Path) -> None:
    accuracies = {"no defence": Accuracy((0.9, 0.8), 300, 4, 160, 40, 0.5, 0.02)}
    accuracies["noise 0.1"] = replace(accuracies["no defence"], values=(0.7, 0.6))
    words = ("sweep.batch_sizes=4", "sweep.defences=none,noise:0.1,noise:10")
    problem = {"noise 10": "training did not stay finite"}
    found = facts(*words, accuracies=accuracies, accuracy_problems=problem, diverged=frozenset({"noise 10"}))
    _, text = read(found)
    assert "noise 0.1 no leak shown 0 of 4 75% -20.0" in text
    assert "noise 10 no leak shown 0 of 4 75% not finite" in text
    write_audit(found)
    assert [(c["training"], c["labels"]) for c in audit_json(tmp_path)["changes"]] == [
        ("better than chance", 0.75),
        ("not finite", 0.75),
    ]


def test_what_the_update_determines_exactly_stands_on_the_page(facts: Facts, tmp_path: Path) -> None:
    found = facts("sweep.batch_sizes=4", "sweep.defences=none,noise:1")
    places = {"no defence": 12, "noise 1": 0}
    known = {
        cell.name: replace(
            found.results[cell.name], exact_places=places[found.grid.axes[-2].levels[cell.levels[-2]].name]
        )
        for cell in found.grid.cells
    }
    _, text = read(replace(found, results=known))
    assert "the activations at 12 places of the network at your settings" in text
    assert "noise 1 no leak shown 0 of 4 75% 0" in text
    assert "places known exactly" in text
    assert "places known exactly" not in read(found)[1]
    write_audit(replace(found, results=known))
    (change,) = audit_json(tmp_path)["changes"]
    assert (change["exactness"], change["exact_places"]) == ("no leak shown", 0)


def test_places_that_are_not_known_are_a_dash_on_the_page(facts: Facts, tmp_path: Path) -> None:
    found = facts("sweep.batch_sizes=4", "sweep.defences=none,noise:1,noise:2", "sweep.states=untrained,net.pt")
    known = {
        name: replace(one, exact_places=0 if "noise-1" in name or "untrained" in name else None)
        for name, one in found.results.items()
    }
    found = replace(found, results=known)
    _, text = read(found)
    assert "noise 1 no leak shown 0 of 4 75% 0" in text
    assert "noise 2 no leak shown 0 of 4 75% –" in text
    write_audit(found)
    changes = audit_json(tmp_path)["changes"]
    assert [(one["exactness"], one["exact_places"]) for one in changes] == [("no leak shown", 0), ("not known", None)]


def test_labels_that_were_given_are_no_leak_of_the_update(facts: Facts) -> None:
    found = facts()
    given = {name: replace(one, labels=None, label_scores=None) for name, one in found.results.items()}
    _, text = read(replace(found, results=given))
    assert "No cell has this number." in text
    assert "earlier version" not in text
    assert "how many of the labels are still recovered is not known" in text
