"""HTTP: routes, bodies and answers of the KServe v2 protocol, on uvicorn."""
