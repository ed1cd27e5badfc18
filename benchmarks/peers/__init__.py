"""Other ways to run the same federated LoRA training, each as well written as we can, for timing beside hetlora."""
