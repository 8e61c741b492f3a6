"""Task `damage`: pairs with known repairs, and what `compare_corpora` finds of them."""

import json

import pytest
from rewritten import INSTRUCTIONS, dataset, paragraphs, texts_of

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from configs import base


def test_damage_pairs_and_their_comparison(tmp_path):
    """Damaged documents cleaned by rules, beside themselves: counts of one add up with those of the other."""
    insults = ["dirty swine", "foul knave", "vile rogue", "base cur", "rank fool", "mean wretch"]
    (tmp_path / "blocked.json").write_text(json.dumps({"words": insults}))
    source = dataset(tmp_path / "web", [paragraphs(2 + n % 3) for n in range(12)])
    config = base.get_config("damage")
    config.damage.update(input=str(source), instruction=f"{INSTRUCTIONS}/short.toml", piece_tokens=80, share=0.6)
    config.damage.block_lists.en = str(tmp_path / "blocked.json")
    config.damage.known_words = 0.5
    counts = runner.run(config, workdir=tmp_path / "damage")
    truth = [json.loads(line) for line in (tmp_path / "damage" / "truth.jsonl").open()]
    assert {row["id"]: row["text"] for row in truth} == texts_of(source)
    planted = [kind for row in truth for kind, _ in row["planted"]]
    assert all(counts[kind] == planted.count(kind) > 0 for kind in config.damage.kinds)
    # Rules may know the one half of the list, and the other one stays unknown, whatever runs divide it.
    known = (tmp_path / "damage" / "known_words" / "en.txt").read_text().splitlines()
    of_kind = {kind: {one for row in truth for k, one in row["planted"] if k == kind} for kind in config.damage.kinds}
    assert of_kind["insult"] <= set(known) < set(insults)
    assert of_kind["unknown_insult"] <= set(insults) - set(known)
    pairs = [json.loads(line)["messages"] for line in (tmp_path / "damage" / "pairs.jsonl").open()]
    assert len(pairs) == counts["pairs"]
    assert all(user["content"].startswith("Rewrite:\n") for user, _ in pairs)
    clean = "\n\n".join(texts_of(source).values())
    assert all(reply["content"] in clean for _, reply in pairs)

    del config.damage.block_lists["en"]
    without = runner.run(config, workdir=tmp_path / "polite")
    assert without["insult"] == 0
    assert without["pieces that get no insult, for want of damage.block_lists.en"] == counts["pairs"]

    rules = base.get_config("rewrite")
    rules.rewrite.update(input=str(tmp_path / "damage" / "web"), worker="rules")
    rules.rewrite.checks.names = ()
    rules.rewrite.block_lists.en = str(tmp_path / "damage" / "known_words" / "en.txt")
    runner.run(rules, workdir=tmp_path / "rules")
    compare = base.get_config("compare_corpora")
    compare.compare.damaged = str(tmp_path / "damage")
    compare.compare.corpora.rules = str(tmp_path / "rules" / "web")
    compare.compare.block_lists.en = str(tmp_path / "blocked.json")
    found = runner.run(compare, workdir=tmp_path / "compare")
    restored = found["restored"]
    assert restored["damaged"]["removed"]["mean"] == 0.0
    assert restored["rules"]["removed: insult"]["mean"] == 1.0
    assert restored["rules"]["removed: unknown_insult"]["mean"] < 0.5
    assert restored["rules"]["clean text kept"]["mean"] > restored["damaged"]["clean text kept"]["mean"]
    toxicity = found["toxicity"]["en"]
    assert toxicity["clean"]["documents with any"] == 0.0
    assert toxicity["rules"]["in 1,000 words"] < toxicity["damaged"]["in 1,000 words"]
    assert (
        toxicity["damaged"]["documents with any"]
        == len({r["id"] for r in truth if {"insult", "unknown_insult"} & dict(r["planted"]).keys()}) / 12
    )
    page = (tmp_path / "compare" / "report.md").read_text()
    assert "## Read: rules" in page
    compare.compare.corpora.start = str(tmp_path / "damage" / "web")  # named by hand, it stands once
    again = runner.run(compare, workdir=tmp_path / "named")["restored"]
    assert again.keys() == {"rules", "start"}
    assert again["start"] == restored["damaged"]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "truth.jsonl").write_text('{"id": "a", "text": "b"}\n')
    compare.compare.damaged = str(tmp_path / "cut")
    with pytest.raises(UserError, match="line 1: lacks id, text or planted"):
        runner.run(compare, workdir=tmp_path / "compared")
    compare.compare.damaged = str(tmp_path)
    with pytest.raises(UserError, match=r"truth.jsonl: no such file, or empty"):
        runner.run(compare, workdir=tmp_path / "none")
