"""The stock Trainer, with the recipe's optimizer and the protocol's evaluation."""

from __future__ import annotations

import torch
from transformers import Trainer

from .data import Domain
from .evaluation import evaluate_domain
from .optim import param_groups


class SegmentationTrainer(Trainer):
    """
    The stock Trainer but for two methods: the optimizer has the recipe's parameter groups, and evaluation runs windows
    over whole images and reduces confusion matrices, where the stock one would gather label maps of unequal sizes.
    """

    def __init__(self, *args, domains: list[Domain], eval_limit: int | None = None, **kwargs):
        # the stock Trainer wants an eval_dataset as soon as there is an evaluation strategy
        super().__init__(*args, eval_dataset={domain.name: domain.dataset for domain in domains} or None, **kwargs)
        self.domains, self.eval_limit = domains, eval_limit

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = param_groups(self.model, self.args.learning_rate, self.args.weight_decay)
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                groups, lr=self.args.learning_rate, betas=betas, eps=self.args.adam_epsilon
            )
        return self.optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU in percent of each domain, and their unweighted mean."""
        was_training = self.model.training
        self.model.eval()
        scores = {}
        for domain in self.domains:
            metric = evaluate_domain(
                self.model, self.processing_class, domain, self.accelerator, limit=self.eval_limit
            )[domain.name]
            scores[domain.name] = 100 * metric.compute()["mean_iou"]
        self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}_miou": value for name, value in scores.items()}
        metrics[f"{metric_key_prefix}_miou"] = sum(scores.values()) / len(scores)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
