"""The checker is itself checked: each validator passes a sound history and catches its planted fault."""

from robustness.history import History, Operation, check


def sound():
    history = History()
    history.operations = {
        1: Operation(
            number=1,
            keys=("a", "b"),
            delete=False,
            invoked=0,
            returned=1,
            outcome="ok",
            revision=1,
            changed=True,
        ),
        2: Operation(
            number=2, keys=("a",), delete=False, invoked=2, returned=3, outcome="ok", revision=2, changed=True
        ),
        3: Operation(number=3, keys=("c",), delete=False, invoked=2, outcome="unknown"),
        4: Operation(
            number=4, keys=("b",), delete=True, invoked=4, returned=5, outcome="ok", revision=4, changed=True
        ),
        5: Operation(number=5, keys=("d",), delete=False, invoked=4, returned=5, outcome="rejected"),
    }
    history.events = [
        ("put", "a", 1, 1),
        ("put", "b", 1, 1),
        ("put", "a", 2, 2),
        ("put", "c", 3, 3),
        ("delete", "b", 4, None),
    ]
    history.checkpoints = [(0, 0), (1, 2), (4, 5)]
    return history, {"a": (2, 2), "c": (3, 3)}, 4


def faults_after(plant):
    history, final, head = sound()
    plant(history, final)
    return " | ".join(check(history, final, head))


def test_a_sound_history_passes():
    assert check(*sound()) == []


def test_an_unknown_write_may_be_absent():
    def plant(history, final):
        del final["c"]
        history.events.remove(("put", "c", 3, 3))
        history.checkpoints[-1] = (4, 4)

    assert faults_after(plant) == ""


def test_catches_a_lost_write():
    assert "is lost" in faults_after(lambda h, f: f.pop("a"))


def test_catches_an_older_version():
    assert "is older than the acknowledged" in faults_after(lambda h, f: f.update(a=(1, 1)))


def test_catches_a_resurrected_delete():
    assert "key b" in faults_after(lambda h, f: f.update(b=(1, 1)))


def test_catches_a_revision_given_twice():
    assert "was given to operations" in faults_after(lambda h, f: setattr(h.operations[2], "revision", 1))


def test_catches_an_acknowledged_revision_above_the_head():
    assert "head is 4" in faults_after(lambda h, f: setattr(h.operations[4], "revision", 9))


def test_catches_an_order_against_real_time():
    def plant(history, final):
        history.operations[1].invoked = 10

    assert "began after one with a higher revision returned" in faults_after(plant)


def test_catches_a_rejected_write_that_appears():
    assert "was rejected and yet is seen" in faults_after(lambda h, f: f.update(d=(4, 5)))


def test_catches_a_second_effect():
    assert "took effect at revisions [3, 4]" in faults_after(lambda h, f: f.update(c=(4, 3)))


def test_catches_an_event_out_of_order():
    assert "came after one of" in faults_after(lambda h, f: h.events.insert(4, ("put", "e", 2, 2)))


def test_catches_an_event_behind_its_checkpoint():
    assert "came after the checkpoint at 1" in faults_after(
        lambda h, f: h.events.insert(2, ("put", "z", 1, 1))
    )


def test_catches_a_checkpoint_that_goes_back():
    assert "checkpoint 1 after 4" in faults_after(lambda h, f: h.checkpoints.append((1, 5)))


def test_a_reset_begins_a_new_copy():
    def plant(history, final):
        history.events += [("put", "a", 2, 2), ("put", "c", 3, 3)]
        history.checkpoints.append((4, 7))

    assert "came after the checkpoint at 4" in faults_after(plant)

    def plant_with_reset(history, final):
        plant(history, final)
        history.restarts.append(5)

    assert faults_after(plant_with_reset) == ""
