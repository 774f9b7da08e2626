"""The ClientApp, as Flower loads it; what it answers is `cold_flower.answers`.

Flower's simulation loads it in the ServerApp's process, too, and starts Ray only then. So nothing
heavy is imported here: torch and transformers take seconds, and workers load them for themselves.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this is and what it runs."""
    from cold_flower import answers

    return answers.query(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Finetune from the base; send back the body."""
    from cold_flower import answers

    return answers.train(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the base."""
    from cold_flower import answers

    return answers.evaluate(message, context)
