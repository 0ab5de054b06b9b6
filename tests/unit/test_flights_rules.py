"""The rules of ``pipelines/flights.py``, one function at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from pipelines.flights import (
    ISLANDS,
    Airline,
    Airport,
    DayOfDelays,
    Flight,
    FlightFact,
    Islands,
    Leg,
    Weather,
    next_time,
    outcome_of,
    to_delays,
    to_fact,
    with_carrier,
    with_zone,
)

NEW_YORK = ZoneInfo("America/New_York")
CHICAGO = ZoneInfo("America/Chicago")
LOS_ANGELES = ZoneInfo("America/Los_Angeles")
PUERTO_RICO = ZoneInfo("America/Puerto_Rico")


def utc(month: int, day: int, hour: int, minute: int = 0, *, year: int = 2013) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


# The first flight of the file, as it stands there.
FLIGHT = Flight(
    id=1,
    year=2013,
    month=1,
    day=1,
    dep_time=517,
    dep_delay=2,
    arr_time=830,
    sched_arr_time=819,
    arr_delay=11,
    carrier="UA",
    flight=1545,
    tailnum="N14228",
    origin="EWR",
    dest="IAH",
    air_time=227,
    distance=1400,
    time_hour=utc(1, 1, 10),
    minute=15,
)
CANCELLED = replace(
    FLIGHT, dep_time=None, dep_delay=None, arr_time=None, arr_delay=None, air_time=None
)
DIVERTED = replace(FLIGHT, arr_delay=None, air_time=None)
LOST = replace(DIVERTED, arr_time=None)
LEG = Leg(FLIGHT, "United Air Lines Inc.", "America/Chicago")


@pytest.mark.parametrize(
    ("after", "clock", "zone", "expected"),
    [
        pytest.param(utc(1, 1, 10, 17), 830, CHICAGO, utc(1, 1, 14, 30), id="same day"),
        pytest.param(utc(1, 2, 4, 30), 209, NEW_YORK, utc(1, 2, 7, 9), id="red-eye, next day"),
        pytest.param(utc(1, 1, 2), 2400, NEW_YORK, utc(1, 1, 5), id="2400 is midnight"),
        pytest.param(utc(1, 1, 2), 0, NEW_YORK, utc(1, 1, 5), id="so is 0"),
        pytest.param(utc(1, 1, 4, 59), 1, NEW_YORK, utc(1, 1, 5, 1), id="a minute past midnight"),
        pytest.param(utc(1, 1, 5), 2400, NEW_YORK, utc(1, 1, 5), id="the very minute"),
        pytest.param(
            utc(1, 1, 4, 30, year=2014),
            350,
            PUERTO_RICO,
            utc(1, 1, 7, 50, year=2014),
            id="new year",
        ),
        # 10 March: 2:00 becomes 3:00. Left at 23:10 EST, lands at 3:20 EDT: 3 h 10 min.
        pytest.param(utc(3, 10, 4, 10), 320, NEW_YORK, utc(3, 10, 7, 20), id="clocks go forward"),
        # A clock that was not put forward yet. The data have one such flight, and its delay and its
        # time in the air agree.
        pytest.param(utc(3, 10, 4, 6), 203, NEW_YORK, utc(3, 10, 7, 3), id="in the skipped hour"),
        # 3 November: 2:00 becomes 1:00 again, and 1:10 comes twice.
        pytest.param(utc(11, 3, 3), 110, NEW_YORK, utc(11, 3, 5, 10), id="first 1:10"),
        pytest.param(utc(11, 3, 5, 30), 110, NEW_YORK, utc(11, 3, 6, 10), id="second 1:10"),
        pytest.param(utc(11, 3, 6, 10), 120, NEW_YORK, utc(11, 3, 6, 20), id="within the second"),
        pytest.param(utc(11, 3, 6, 30), 110, NEW_YORK, utc(11, 4, 6, 10), id="after both"),
        pytest.param(utc(11, 3, 3), 230, NEW_YORK, utc(11, 3, 7, 30), id="clocks went back"),
        pytest.param(utc(7, 1, 1), 2359, LOS_ANGELES, utc(7, 1, 6, 59), id="three zones west"),
    ],
)
def test_an_arrival_is_the_next_time_that_the_clocks_there_show_it(
    after: datetime, clock: int, zone: ZoneInfo, expected: datetime
) -> None:
    found = next_time(after, clock, zone)

    assert found == expected
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("flight", "expected"),
    [(FLIGHT, "arrived"), (CANCELLED, "cancelled"), (DIVERTED, "diverted"), (LOST, "diverted")],
)
def test_outcome(flight: Flight, expected: str) -> None:
    assert outcome_of(flight) == expected


def test_a_fact_has_instants_and_the_weather_of_its_hour() -> None:
    weather = Weather(
        origin="EWR", time_hour=utc(1, 1, 10), temp=39.0, wind_speed=12.7, precip=0.0, visib=10.0
    )

    assert to_fact(LEG, weather) == FlightFact(
        id=1,
        day=date(2013, 1, 1),
        carrier="UA",
        carrier_name="United Air Lines Inc.",
        flight=1545,
        tailnum="N14228",
        origin="EWR",
        dest="IAH",
        distance_miles=1400,
        outcome="arrived",
        scheduled_departure=utc(1, 1, 10, 15),
        departure=utc(1, 1, 10, 17),
        departure_delay_min=2,
        scheduled_arrival=utc(1, 1, 14, 19),
        arrival=utc(1, 1, 14, 30),
        arrival_delay_min=11,
        air_time_min=227,
        temp_f=39.0,
        wind_mph=12.7,
        precip_inches=0.0,
        visibility_miles=10.0,
    )


def test_an_hour_that_nobody_observed_gives_null() -> None:
    fact = to_fact(LEG, None)

    assert (fact.temp_f, fact.wind_mph, fact.precip_inches, fact.visibility_miles) == (None,) * 4


def test_a_flight_that_never_left_has_its_schedule_only() -> None:
    fact = to_fact(LEG._replace(flight=CANCELLED), None)

    assert (fact.departure, fact.arrival) == (None, None)
    assert fact.scheduled_departure == utc(1, 1, 10, 15)
    assert fact.scheduled_arrival == utc(1, 1, 14, 19)


def test_a_diverted_flight_keeps_an_arrival_that_is_known() -> None:
    assert to_fact(LEG._replace(flight=DIVERTED), None).arrival == utc(1, 1, 14, 30)
    assert to_fact(LEG._replace(flight=LOST), None).arrival is None


def test_a_delay_past_midnight_moves_the_departure_to_the_next_day() -> None:
    late = replace(FLIGHT, time_hour=utc(1, 2, 4), minute=50, dep_time=2400, dep_delay=10)

    assert to_fact(LEG._replace(flight=late), None).departure == utc(1, 2, 5)


def test_without_a_zone_the_instants_of_arrival_are_null_and_the_delays_stay() -> None:
    fact = to_fact(LEG._replace(zone=None), None)

    assert (fact.scheduled_arrival, fact.arrival) == (None, None)
    assert fact.arrival_delay_min == 11
    assert fact.departure == utc(1, 1, 10, 17)


def test_the_zone_comes_from_the_airport_or_from_the_islands() -> None:
    houston = Airport("IAH", "Houston", 30.0, -95.3, 97, -6, "A", "America/Chicago")
    to_san_juan = Leg(replace(FLIGHT, dest="SJU"), None)
    to_nowhere = Leg(replace(FLIGHT, dest="XXX"), None)

    assert with_zone(Leg(FLIGHT, None), houston).zone == "America/Chicago"
    assert with_zone(Leg(FLIGHT, None), replace(houston, tzone=None)).zone is None
    assert with_zone(to_san_juan, None).zone == "America/Puerto_Rico"
    assert with_zone(to_nowhere, None).zone is None


def test_the_carriers_name_is_null_where_nobody_knows_it() -> None:
    assert with_carrier(FLIGHT, Airline("UA", "United")).carrier_name == "United"
    assert with_carrier(FLIGHT, None).carrier_name is None


@pytest.mark.parametrize(
    ("flight", "counts"),
    [(FLIGHT, (1, 0, 0, 1, 11)), (CANCELLED, (1, 1, 0, 0, 0)), (DIVERTED, (1, 0, 1, 0, 0))],
)
def test_a_flight_counts_once_on_its_day_at_its_destination(
    flight: Flight, counts: tuple[int, int, int, int, int]
) -> None:
    assert to_delays(flight) == DayOfDelays("IAH", date(2013, 1, 1), *counts)


async def test_islands_are_read_once() -> None:
    source = Islands()

    first = [batch async for batch in source.read(None, None)]
    again = [batch async for batch in source.read(first[-1].position, None)]

    assert [row for batch in first for row in batch.rows] == list(ISLANDS)
    assert again == []
