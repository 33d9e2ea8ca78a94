"""What the loop logs beside its rows."""

from types import SimpleNamespace

import torch

from tid.loop import TABLE_MIN_SEEN, TABLE_ROWS, drop_tables


def test_tables_of_dropped_tokens_decode_what_they_show_and_leave_out_rare_ones():
    count, decoded = 10 * TABLE_ROWS, []
    seen = torch.full((count,), TABLE_MIN_SEEN)
    seen[-1] -= 1  # dropped most, but too rare
    drops = torch.arange(count).clamp(max=TABLE_MIN_SEEN) * seen // TABLE_MIN_SEEN
    run = SimpleNamespace(
        step=SimpleNamespace(token_seen=seen, token_drops=drops), decode=lambda i: decoded.append(i) or str(i)
    )
    tables = drop_tables(run)
    share = [d / s for d, s in zip(drops.tolist(), seen.tolist(), strict=True)]
    least, most = tables["least_dropped"], tables["most_dropped"]
    assert least == [[str(i), TABLE_MIN_SEEN, share[i]] for i in range(TABLE_ROWS)]
    assert [row[2] for row in most] == sorted(share[:-1], reverse=True)[:TABLE_ROWS]
    assert len(most) == TABLE_ROWS and str(count - 1) not in [row[0] for row in most]
    assert len(decoded) == 2 * TABLE_ROWS
