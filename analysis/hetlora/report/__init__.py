"""`hetlora report`: one HTML page of a run or a sweep, with charts that work from disk and without a network."""
