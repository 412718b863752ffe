import torch

from vla_crl.state_dicts import join_states, part_of


def test_parts_are_joined_by_name_and_taken_out_again() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    inner = join_states({"a": {"x": one}, "b": {}})
    joined = join_states({"lane1": inner, "lane10": {"x": two}})
    assert list(joined) == ["lane1/a/x", "lane10/x"]
    assert part_of(joined, "lane1") == {"a/x": one}
    assert part_of(part_of(joined, "lane1"), "a") == {"x": one}
    assert part_of(joined, "lane") == part_of(joined, "b") == {}
