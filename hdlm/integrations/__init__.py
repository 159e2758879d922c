"""Classes for other frameworks: `transformers` and lm-evaluation-harness."""
