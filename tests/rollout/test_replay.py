from vla_crl.rollout.agents import ExpertAgent
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.replay import RecordingAgent, ReplayingAgent
from vla_crl.sim.native.suite import load_suite


def test_recorded_episodes_go_the_same_way_in_other_slots(make_lanes):
    suite, tasks = load_suite("tabletop_object"), ["pink_egg_in_tray"]
    recording = RecordingAgent(ExpertAgent())
    (result,) = evaluate(recording, make_lanes(suite, 2), tasks, num_episodes=5)
    index = suite.task_index(tasks[0])
    lengths = [len(recording.chunks[index, episode.state_id]) for episode in result.played]
    assert lengths == [episode.num_steps for episode in result.played]  # one step a chunk
    again = ReplayingAgent(recording.chunks, image_size=64)
    assert evaluate(again, make_lanes(suite, 5), tasks, num_episodes=5) == [result]


def test_agents_that_record_or_repeat_say_how_they_act():
    suite, expert = load_suite("tabletop_object"), ExpertAgent()
    assert RecordingAgent(expert).description(suite) == expert.description(suite)
    assert RecordingAgent(expert).image_size == expert.image_size
    assert ReplayingAgent({}, image_size=64).description(suite) == {"actions": "recorded"}
