"""The loggers of a config (`trainer.logger`): W&B, MLflow, TensorBoard and others, beside VELM's own files."""
