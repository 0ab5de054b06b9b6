"""Flights out of New York in 2013: from an operational database into a warehouse.

    python -m pipelines.flights build     # makes the source, data/flights.db
    etl run pipelines/flights.py          # loads the warehouse, data/warehouse.db
    python -m pipelines.flights report    # the five worst airports

``SOURCE_URL`` and ``WAREHOUSE_URL`` name other databases, SQLite or PostgreSQL; the code is the
same. The five flows run together, and each goes on where its last run stopped: a second run
moves nothing, and what was added to the source arrives with the next run.

The data are real, and so is their dirt. The rules:

- **Four airports are missing.** 7,602 flights go to San Juan, Aguadilla, Ponce and St. Thomas,
  which the source does not know. ``ISLANDS`` has them: they go into ``dim_airports``, and their
  flights get their time zone. A flight to any other airport that is unknown, or has no zone,
  keeps its delays; its instants of arrival are NULL.
- **Tail numbers.** 2,512 flights have none: NULL. 721 more, on 50,094 flights, are not in
  ``planes``: the fact keeps the number, and ``dim_planes`` has no row for it.
- **Flights that never came.** 8,255 never left: ``cancelled``. 1,175 left, but have no delay on
  arrival: ``diverted``. 717 of those have a time of arrival (hours late), and keep it. All others
  ``arrived``, and only they count in a mean delay.
- **Clocks without date or zone.** A departure is the scheduled instant plus the delay. An arrival
  is the first instant after it at which the clocks there show the time of arrival, so a red-eye
  arrives on the next day, and the days on which clocks change are right. ``2400`` (29 departures,
  150 arrivals) is midnight. One flight lands at 2:03 in the night in which 2:00 became 3:00: its
  clock was not put forward yet. Two checks then hold to the minute for every flight: the
  departure shows the clock time that was noted, and the arrival is the scheduled one plus the
  delay.
- **An hour twice.** On 3 November each airport has two rows of weather for 1 o'clock. The weather
  is looked up by the instant of the hour, and an instant comes only once.
- **Hours without weather.** 1,556 flights were due in an hour that nobody observed: NULL.

Three airports without a time zone, one of them with latitude and longitude swapped, and one hour
with a wind of 1,048 mph stay as they are: no flight of 2013 touches them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

from etl import Batch, Database, Pipeline, Position, Source, merge

# --- The rows that are read ------------------------------------------------------------------


@dataclass(slots=True)
class Airline:
    carrier: str
    name: str


@dataclass(slots=True)
class Airport:
    faa: str
    name: str
    lat: float
    lon: float
    alt: int
    tz: int
    dst: str
    tzone: str | None


@dataclass(slots=True)
class Plane:
    tailnum: str
    year: int | None
    type: str
    manufacturer: str
    model: str
    engines: int
    seats: int
    speed: int | None
    engine: str


@dataclass(slots=True)
class Weather:
    origin: str
    time_hour: datetime
    temp: float | None
    wind_speed: float | None
    precip: float | None
    visib: float | None


@dataclass(slots=True)
class Flight:
    """Clock times are local and written as a number: 517 is 5:17. Delays are minutes.

    ``time_hour`` is the instant of the hour in which it was to leave, ``minute`` the minute in it.
    """

    id: int
    year: int
    month: int
    day: int
    dep_time: int | None
    dep_delay: int | None
    arr_time: int | None
    sched_arr_time: int
    arr_delay: int | None
    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    air_time: int | None
    distance: int
    time_hour: datetime
    minute: int


# --- The rows that are written ---------------------------------------------------------------


@dataclass(slots=True)
class FlightFact:
    """One flight.

    ``day`` is the local day of its scheduled departure. ``carrier_name`` is the name that the
    airline had when the flight was loaded. The weather is that of its scheduled hour at its origin.
    """

    id: int
    day: date
    carrier: str
    carrier_name: str | None
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    distance_miles: int
    outcome: str
    scheduled_departure: datetime
    departure: datetime | None
    departure_delay_min: int | None
    scheduled_arrival: datetime | None
    arrival: datetime | None
    arrival_delay_min: int | None
    air_time_min: int | None
    temp_f: float | None
    wind_mph: float | None
    precip_inches: float | None
    visibility_miles: float | None


@dataclass(slots=True)
class DayOfDelays:
    """The flights to one airport on one day. Sums and counts can be added up; means cannot."""

    airport: str
    day: date
    flights: int
    cancelled: int
    diverted: int
    arrived: int
    arrival_delay_min: int


# --- The rules -------------------------------------------------------------------------------

ISLANDS: Final = (
    Airport("BQN", "Rafael Hernandez", 18.4949, -67.1294, 237, -4, "N", "America/Puerto_Rico"),
    Airport("PSE", "Mercedita", 18.0083, -66.5630, 29, -4, "N", "America/Puerto_Rico"),
    Airport("SJU", "Luis Munoz Marin Intl", 18.4394, -66.0018, 9, -4, "N", "America/Puerto_Rico"),
    # The Virgin Islands keep the time of Puerto Rico: four hours behind UTC all year round.
    Airport("STT", "Cyril E King", 18.3373, -64.9734, 23, -4, "N", "America/Puerto_Rico"),
)

ISLAND_ZONES: Final = {island.faa: island.tzone for island in ISLANDS}


def outcome_of(flight: Flight) -> str:
    """``arrived``: the delay on arrival is known. ``cancelled``: never left. Else ``diverted``."""
    if flight.arr_delay is not None:
        return "arrived"
    return "cancelled" if flight.dep_time is None else "diverted"


def next_time(after: datetime, clock: int, zone: ZoneInfo) -> datetime:
    """The first instant, from a given one on, at which the clocks of a zone show a time.

    Args:
        after: The departure. No flight takes 24 hours, so it settles the day.
        clock: 517 is 5:17; 2400 is midnight, as 0 is. A time that the clocks skip, because they
            are put forward, is meant by a clock that was not put forward yet.
        zone: The zone of the airport of arrival.

    Returns:
        The instant in UTC.
    """
    today = after.astimezone(zone).date()
    shown = datetime.combine(today, time(clock // 100 % 24, clock % 100), zone)
    instant = shown.astimezone(UTC)
    if instant < after:  # perhaps an hour that comes twice: then its second time
        instant = shown.replace(fold=1).astimezone(UTC)
    if instant < after:
        instant = (shown + timedelta(days=1)).astimezone(UTC)
    return instant


class Leg(NamedTuple):
    """A flight with what was looked up for it so far."""

    flight: Flight
    carrier_name: str | None
    zone: str | None = None


def with_carrier(flight: Flight, airline: Airline | None) -> Leg:
    return Leg(flight, airline.name if airline else None)


def with_zone(leg: Leg, airport: Airport | None) -> Leg:
    """Add the time zone of the destination, None where nobody knows it."""
    dest = leg.flight.dest
    return Leg(leg.flight, leg.carrier_name, airport.tzone if airport else ISLAND_ZONES.get(dest))


def to_fact(leg: Leg, weather: Weather | None) -> FlightFact:
    """Turn a flight into a fact, with the weather of its hour."""
    flight = leg.flight
    zone = ZoneInfo(leg.zone) if leg.zone else None
    scheduled = flight.time_hour + timedelta(minutes=flight.minute)
    departure = arrival = None
    if flight.dep_delay is not None:
        departure = scheduled + timedelta(minutes=flight.dep_delay)
        if zone and flight.arr_time is not None:
            arrival = next_time(departure, flight.arr_time, zone)
    return FlightFact(
        id=flight.id,
        day=date(flight.year, flight.month, flight.day),
        carrier=flight.carrier,
        carrier_name=leg.carrier_name,
        flight=flight.flight,
        tailnum=flight.tailnum,
        origin=flight.origin,
        dest=flight.dest,
        distance_miles=flight.distance,
        outcome=outcome_of(flight),
        scheduled_departure=scheduled,
        departure=departure,
        departure_delay_min=flight.dep_delay,
        scheduled_arrival=next_time(scheduled, flight.sched_arr_time, zone) if zone else None,
        arrival=arrival,
        arrival_delay_min=flight.arr_delay,
        air_time_min=flight.air_time,
        temp_f=weather.temp if weather else None,
        wind_mph=weather.wind_speed if weather else None,
        precip_inches=weather.precip if weather else None,
        visibility_miles=weather.visib if weather else None,
    )


def to_delays(flight: Flight) -> DayOfDelays:
    """What one flight adds to the day at its destination."""
    outcome = outcome_of(flight)
    return DayOfDelays(
        airport=flight.dest,
        day=date(flight.year, flight.month, flight.day),
        flights=1,
        cancelled=int(outcome == "cancelled"),
        diverted=int(outcome == "diverted"),
        arrived=int(outcome == "arrived"),
        arrival_delay_min=flight.arr_delay or 0,
    )


class Islands(Source[Airport]):
    """The airports that the source lacks. Its position is how many of them were read."""

    name = "islands"

    @property
    def row_type(self) -> type[Airport]:
        return Airport

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[Airport], None]:
        done = after[0] if after else 0
        if done < len(ISLANDS):
            yield Batch(ISLANDS[done:], position=(len(ISLANDS),))


# --- The pipeline ----------------------------------------------------------------------------

DATA: Final = quote(str(Path(__file__).resolve().parent.parent / "data"))
SOURCE_URL: Final = os.environ.get("SOURCE_URL") or f"sqlite:///{DATA}/flights.db"
WAREHOUSE_URL: Final = os.environ.get("WAREHOUSE_URL") or f"sqlite:///{DATA}/warehouse.db"


def flights_pipeline(source: Database, warehouse: Database) -> Pipeline:
    """The flows from one database into the other."""
    # Side tables of the look-ups: read whole, once per run.
    carriers = source.table("airlines", row=Airline)
    destinations = source.table("airports", row=Airport)
    weather = source.table("weather", row=Weather)

    # What moves: each read goes on after the cursor that the last run reached.
    airlines = source.table("airlines", row=Airline, cursor=("updated_at", "carrier"))
    airports = source.table("airports", row=Airport, cursor=("updated_at", "faa"))
    planes = source.table("planes", row=Plane, cursor=("updated_at", "tailnum"))
    flights = source.table("flights", row=Flight, cursor=("id",))

    facts = (
        flights.named("facts")
        .lookup(
            carriers,
            side_key=lambda airline: airline.carrier,
            key=lambda flight: flight.carrier,
            combine=with_carrier,
        )
        .lookup(
            destinations,
            side_key=lambda airport: airport.faa,
            key=lambda leg: leg.flight.dest,
            combine=with_zone,
        )
        .lookup(
            weather,
            side_key=lambda hour: (hour.origin, hour.time_hour),
            key=lambda leg: (leg.flight.origin, leg.flight.time_hour),
            combine=to_fact,
        )
    )
    delays = flights.named("delays").map(to_delays)
    sums = ("flights", "cancelled", "diverted", "arrived", "arrival_delay_min")
    all_airports = merge(airports, Islands()).named("airports")

    return Pipeline(
        "flights",
        airlines.into(warehouse.upsert("dim_airlines", key=("carrier",))),
        all_airports.into(warehouse.upsert("dim_airports", key=("faa",))),
        planes.into(warehouse.upsert("dim_planes", key=("tailnum",))),
        facts.into(warehouse.upsert("fact_flights", key=("id",))),
        delays.into(warehouse.upsert("delays_by_day", key=("airport", "day"), add=sums)),
    )


pipeline = flights_pipeline(Database(SOURCE_URL), Database(WAREHOUSE_URL))

if __name__ == "__main__":
    from pipelines.flights_commands import main

    main(SOURCE_URL, WAREHOUSE_URL)
