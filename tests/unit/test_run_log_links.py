"""A run's metrics are written into its own folder, whatever link is planted there."""

import json

from trl_dpo_ext.run_files import METRICS
from trl_dpo_ext.run_log import RunLog


def test_a_link_is_replaced(tmp_path):
    foreign, log = tmp_path / "foreign.txt", RunLog(tmp_path / "run")
    log.folder.mkdir(parents=True)
    for content in ("theirs\n", None):  # the second link leads to nothing
        foreign.unlink(missing_ok=True)
        if content is not None:
            foreign.write_text(content)
        path = log.folder / METRICS
        path.unlink(missing_ok=True)
        path.symlink_to(foreign)
        log.append(METRICS, [{"step": 1}])
        log.append(METRICS, [{"step": 2}])
        assert not path.is_symlink()
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]
        assert (foreign.read_text() if foreign.exists() else None) == content
