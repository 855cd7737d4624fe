"""The distillation core: one trainer, and the protocols of teachers, methods and data."""
