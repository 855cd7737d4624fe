import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[2] / "docs" / "networks.md"


def test_the_documented_step_runs_as_printed_and_every_file_is_listed():
    text = DOCS.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    torch.manual_seed(0)
    names: dict = {}
    exec(code.group(1), names)  # noqa: S102 (our own page)
    assert names["loss"].ndim == 0 and bool(names["loss"].isfinite())
    listed = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))))
    import tutelage.networks

    found = {path.stem for path in Path(tutelage.networks.__file__).parent.glob("*.py")} - {"__init__"}
    assert found <= listed
