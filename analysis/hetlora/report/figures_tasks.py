"""The figure of the report about the metrics beside the loss: answers chosen, generated text."""

from hetlora.report.figures import Figure, _curve, _seeds_note
from hetlora.report.rows import Method

LOSS_COLUMNS = ("eval_loss", "eval_perplexity", "eval_accuracy")
TITLES = {
    "choice_accuracy": "right answers (share)",
    "macro_f1": "macro F1",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "exact_match": "exact replies (share)",
}


def task_metrics(methods: list[Method]) -> Figure | None:
    """One chart by round for each further metric of evaluation.metrics."""
    columns = dict.fromkeys(
        name for method in methods for record in method.records for name in record.rounds
        if name.startswith("eval_") and name not in LOSS_COLUMNS and not name.startswith("eval_test_")
    )  # fmt: skip
    specs = []
    for column in columns:
        name = column.removeprefix("eval_")
        spec = _curve(methods, column, TITLES.get(name, name))
        if spec is not None:
            specs.append({**spec, "title": TITLES.get(name, name)})
    note = "Of the evaluation set; higher is better where the metric is one of hetlora's. " + _seeds_note(methods)
    return Figure("tasks", "Metrics beside the loss", note, specs) if specs else None
