import subprocess
import sys


def test_every_strategy_is_known_in_a_fresh_process():
    """What is known must not depend on what other code has imported."""
    code = "from tutelage.sdvp.options import with_strategy; print(with_strategy('ewc+lora').strategy)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EWC" in found.stdout and "LoRA" in found.stdout
