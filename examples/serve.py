"""A trained run behind HTTP, on this machine alone: python examples/serve.py runs/mood

curl http://127.0.0.1:8000/predict --json '["Text:joyful calf noon\\nLabel:"]'
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

import ia2


def server(folder: str) -> FastAPI:
    """Answers queries in the order they come, each batch in one pass; the model is loaded once."""
    run = ia2.Run.open(folder)
    lm = run.load_model()
    app = FastAPI()

    @app.post("/predict")
    async def predict(queries: list[str]) -> list[dict[str, Any]]:
        answers = run.predict(queries, lm)
        return [{"response": a.text, "confidence": a.confidence, "p_labels": a.p_labels} for a in answers]

    return app


if __name__ == "__main__":
    uvicorn.run(server(sys.argv[1]), host="127.0.0.1", port=8000)
