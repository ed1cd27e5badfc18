"""ROUGE and exact match of the program against the package `rouge-score`, on random pairs of texts."""

import json
import random
import subprocess

import pytest
from program import ROOT, environment

TOOL = ROOT / "build" / "tests" / "text_scores_tool"
N_PAIRS = 200
WORDS = (
    "the The a tea rain don't co-operate naïve Café İzmir 5K 3.14 x_y Hello, world! so so so yes no hill 2018 "
    "it's über ½ 日本 🙂 ﬁne end.\n\tTab"
).split(" ")

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")


def pairs():
    """(real, generated): unrelated ones, edited copies, blank ones."""
    rng = random.Random(17)
    for i in range(N_PAIRS):
        real = [rng.choice(WORDS) for _ in range(rng.randint(0, 30))]
        if i % 3 == 0:
            generated = [rng.choice(WORDS) for _ in range(rng.randint(0, 30))]
        else:
            generated = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in real if rng.random() < 0.9]
        if i % 10 == 1:
            generated = [" ", *real, "\n"]
        yield " ".join(real), " ".join(generated)


def test_rouge_agrees_with_the_package_on_200_pairs():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    texts = list(pairs())
    lines = "".join(json.dumps(pair) + "\n" for pair in texts)
    done = subprocess.run([TOOL], input=lines, capture_output=True, text=True, check=True, env=environment())
    scores = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(scores) == N_PAIRS
    distinct = set()
    for (real, generated), (rouge1, rouge_l, same) in zip(texts, scores, strict=True):
        expected = scorer.score(real, generated)
        assert rouge1 == pytest.approx(expected["rouge1"].fmeasure, abs=1e-6), (real, generated)
        assert rouge_l == pytest.approx(expected["rougeL"].fmeasure, abs=1e-6), (real, generated)
        assert same == (real.strip() == generated.strip()), (real, generated)
        distinct.add(round(rouge_l, 6))
    assert len(distinct) > 50
