"""The meter: exact counts over an injected clock, by hand."""

import itertools

import pytest

import flopcount as fc
from flopcount.meter import Reading

MODEL = fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, num_layers=1, num_heads=2)
# 3·(24·n·d² + 2·2·d·n(n + 1)/2 + 2·n·d·V) at n = 3, d = 4, V = 9: 3·(1152 + 96 + 216).
PER_SEQUENCE = 3 * 1464
MINE = fc.Device("mine", {"bf16": fc.Peak(1e6, "an example")})


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


def metered(**options):
    clock = Clock()
    options = dict(batch_size=2, device=MINE, num_devices=4) | options
    return fc.Meter(MODEL, clock=clock, **options), clock


def take(meter, clock, *seconds):
    for each in seconds:
        clock.now += each
        meter.step()


def test_rates_are_of_the_steps_after_the_warm_up():
    meter, clock = metered(warmup_steps=2)
    take(meter, clock, 50, 9)
    assert meter.reading().to_dict() == {"steps": 2, "tokens": 12, "seconds": 59}
    take(meter, clock, 0.5, 1.5)  # 1 s a step
    reading = meter.reading()
    assert (reading.steps, reading.tokens, reading.seconds) == (4, 4 * 6, 61)
    assert reading.tokens_per_second == 6
    assert reading.flops_per_second == 2 * PER_SEQUENCE
    assert reading.mfu == reading.hfu == 2 * PER_SEQUENCE / 4e6
    assert reading.cost is reading.seconds_left is None


def test_without_a_warm_up_the_clock_starts_with_the_meter():
    meter, clock = metered(warmup_steps=0)
    take(meter, clock, 2)
    assert meter.reading().tokens_per_second == 3


def test_a_warm_up_that_is_not_left_out_would_show():
    """The twin of the first test: the same steps, and another rate."""
    meter, clock = metered(warmup_steps=0)
    take(meter, clock, 50, 9, 0.5, 1.5)
    assert meter.reading().tokens_per_second == pytest.approx(4 * 6 / 61)


def test_cost_and_time_left():
    meter, clock = metered(
        warmup_steps=1, total_steps=10, price_per_device_hour=2.5, device=None, num_devices=8
    )
    take(meter, clock, 1800, 3, 5)
    clock.now += 1792  # the cost runs on, whatever the devices do
    reading = meter.reading()
    assert reading.cost == 8 * 2.5  # an hour
    assert reading.seconds_left == 7 * 4  # 10 - 3 steps of (3 + 5)/2 s
    assert reading.mfu is reading.hfu is None
    assert str(reading) == "step 3, 2 tokens/s, cost 20.00, 0:00:28 left"
    take(meter, clock, *[4] * 9)
    assert meter.reading().seconds_left == 0


def test_total_tokens_stand_for_steps():
    # 6 tokens a step: 31 tokens take 6 steps.
    assert metered(total_tokens=31)[0].total_steps == 6
    with pytest.raises(ValueError, match="expected one of the two at most"):
        metered(total_tokens=31, total_steps=6)


def test_a_window_forgets():
    meter, clock = metered(warmup_steps=1, window=2)
    take(meter, clock, 1, 100, 2, 4)
    assert meter.reading().tokens_per_second == 6 / 3
    take(meter, clock, 6)
    assert meter.reading().tokens_per_second == 6 / 5


def test_what_is_skipped_is_in_no_rate_but_in_the_cost():
    readings = []
    for skips in (True, False):
        meter, clock = metered(warmup_steps=1, price_per_device_hour=1)
        take(meter, clock, 1, 1)
        clock.now += 58  # an evaluation
        if skips:
            meter.skip()
        take(meter, clock, 1)
        readings.append(meter.reading())
    skipped, counted = readings
    assert skipped.tokens_per_second == 6
    assert counted.tokens_per_second == 2 * 6 / 60
    assert skipped.cost == counted.cost == 4 * 61 / 3600


def test_hfu_is_of_what_is_executed():
    executed = MODEL.flops("dense", batch_size=2, checkpointing="reentrant")
    for options, flops in (
        (dict(executed=executed), executed.with_recompute),
        (
            dict(checkpointing="reentrant"),
            MODEL.flops(batch_size=2, checkpointing="reentrant").with_recompute,
        ),
    ):
        meter, clock = metered(warmup_steps=0, **options)
        take(meter, clock, 1)
        reading = meter.reading()
        assert reading.hfu == flops / 4e6 > reading.mfu == 2 * PER_SEQUENCE / 4e6


def test_a_count_stands_for_a_model():
    count = MODEL.flops(convention="6n", batch_size=2)
    clock = Clock()
    meter = fc.Meter(count, 2, MINE, warmup_steps=0, clock=clock)
    take(meter, clock, 1)
    assert meter.reading().mfu == count.total / 1e6
    # A count at another level is no numerator of MFU.
    meter = fc.Meter(MODEL.flops("dense"), 1, MINE, warmup_steps=0, clock=clock)
    take(meter, clock, 1)
    assert (meter.reading().mfu, meter.reading().hfu) == (None, MODEL.flops("dense").total / 1e6)
    with pytest.raises(ValueError, match=r"batch_size = 3: expected that of the count .* 2"):
        fc.Meter(count, 3)
    with pytest.raises(ValueError, match="expected a count with it"):
        fc.Meter(count, 2, checkpointing="reentrant")


def test_more_than_the_peak_does_not_end_a_training():
    meter, clock = metered(warmup_steps=0)
    take(meter, clock, 1e-6)
    with pytest.warns(UserWarning, match="MFU is left empty .* 4 × 1e"):
        assert meter.reading().mfu is None


def test_a_clock_that_goes_back_is_refused():
    meter, clock = metered()
    clock.now -= 1
    for ask in (meter.step, meter.reading, meter.skip):
        with pytest.raises(ValueError, match=r"clock = 99.0 after 100.0"):
            ask()


def test_no_time_is_no_rate():
    meter, clock = metered(warmup_steps=0)
    take(meter, clock, 0)
    assert meter.reading().tokens_per_second is None


def test_the_default_clock_is_monotonic():
    meter = fc.Meter(MODEL, 1, warmup_steps=0)
    seconds = []
    for _ in range(3):
        meter.step()
        seconds.append(meter.reading().seconds)
    assert all(a <= b for a, b in itertools.pairwise(seconds))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "batch_size = 0"),
        (dict(batch_size=2.0), "batch_size = 2.0 is a float"),
        (dict(num_devices=0), "num_devices = 0"),
        (dict(device="abacus"), "device = 'abacus': expected one of"),
        (dict(dtype="fp8"), "dtype = 'fp8'"),
        (dict(warmup_steps=-1), "warmup_steps = -1"),
        (dict(window=0), "window = 0"),
        (dict(price_per_device_hour=0), "price_per_device_hour = 0"),
        (dict(total_steps=0), "total_steps = 0"),
        (dict(checkpointing="some"), "checkpointing = 'some'"),
        (dict(executed=3), "executed = 3: expected a count"),
        (dict(executed=MODEL.flops()), "the count that is given as executed, 1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        metered(**options)


def test_other_arguments_are_checked():
    with pytest.raises(TypeError, match="model = 'gpt2': expected an architecture"):
        fc.Meter("gpt2", 1)
    with pytest.raises(TypeError, match="clock = 3"):
        fc.Meter(MODEL, 1, clock=3)
    with pytest.raises(ValueError, match="expected what a float can hold"):
        fc.Meter(MODEL, 10**300)


def test_hours_are_shown():
    assert str(Reading(1, 2, 3.0, seconds_left=3725.4)) == "step 1, 1:02:05 left"
