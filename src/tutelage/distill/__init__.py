"""The distillation core: one trainer, and the protocols that teachers, methods and data speak."""
