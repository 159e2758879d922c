"""A server with the API of OpenAI for models of hdlm: `hdlm serve`.

| module | what it does |
|---|---|
| `options` | host, limits and safety of a server |
| `models` | the models of a server, and the algorithms that each supports |
| `schema` | requests and answers as pydantic models |
| `translate` | from a request to a `WriteRequest`, and from passages to an answer |
| `jobs` | one thread computes; jobs connect it with the event loop |
| `metrics` | Prometheus metrics |
| `guard` | keys, limits of size, request ids, headers and the log |
| `app` | the routes |
| `run` | uvicorn |

The route `/` returns the playground, `static/index.html`. It shows generations with the player of `hdlm/view/static`.
"""
