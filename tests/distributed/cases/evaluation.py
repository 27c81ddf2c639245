"""Evaluation and prediction."""

from typing import Any

from launch import Launch, case, evaluate, explicit_reference, make_trainer, run_log, train
from tiny import preference_rows


@case()
def evaluates(launch: Launch) -> dict[str, Any]:
    """9 rows in batches of 4."""
    rows = preference_rows(9, start=40)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        chosen, rejected = prediction.predictions.T
        return {"rows": len(chosen), "own_margin": float((chosen - rejected).mean())}

    trainer = make_trainer(launch, eval_dataset=rows, ref_model=explicit_reference(), compute_metrics=compute_metrics)
    return evaluate(trainer, rows)


@case()
def evaluates_sets(launch: Launch) -> dict[str, Any]:
    """Two sets, of 9 and 5 rows."""
    sets = {"long": preference_rows(9, start=40), "short": preference_rows(5, start=60)}
    options = {"folder": "sets", "log_samples": 3, "max_length": 48}
    trainer = make_trainer(launch, eval_dataset=sets, ref_model=explicit_reference(), options=options)
    return {
        "metrics": trainer.evaluate(),
        "predictions": {name: trainer.predict(rows).predictions.tolist() for name, rows in sets.items()},
        "run_log": run_log(trainer),
    }


@case()
def samples(launch: Launch) -> dict[str, Any]:
    """Samples of the rows of `evaluates` after `ragged`."""
    options = {"num_train_epochs": 2, "log_samples": 3}
    trainer = make_trainer(launch, 11, options=options, eval_dataset=preference_rows(9, start=40))
    result = train(launch, trainer, "samples")
    trainer.evaluate()
    return result | {"run_log": run_log(trainer)}


@case()
def predicts(launch: Launch) -> dict[str, Any]:
    """7 rows, and the first of them alone."""
    trainer = make_trainer(launch, ref_model=explicit_reference())
    outputs = {"seven": trainer.predict(preference_rows(7)), "one": trainer.predict(preference_rows(1))}
    return {
        name: {
            "predictions": output.predictions.tolist(),
            "label_ids": output.label_ids.tolist(),
            "metrics": output.metrics,
        }
        for name, output in outputs.items()
    }


@case()
def hinge_evaluates(launch: Launch) -> dict[str, Any]:
    """The same loss on 11 rows in batches of 4."""
    rows = preference_rows(11, start=40)
    options = {"loss_type": "hinge"}
    trainer = make_trainer(launch, options=options, eval_dataset=rows, ref_model=explicit_reference())
    return evaluate(trainer, rows)


@case()
def streams_evaluates(launch: Launch) -> dict[str, Any]:
    """The rows of `evaluates` as a streaming data set."""
    rows = preference_rows(9, start=40)
    trainer = make_trainer(launch, eval_dataset=rows.to_iterable_dataset(), ref_model=explicit_reference())
    return {"metrics": trainer.evaluate()}
