"""Networks that Lightning or skorch trained are adopted as they are, and methods start from there."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayesuq as bq
from bayesuq.models import likelihoods
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] + x[:, 1] > 0).long()


def check(net: nn.Module, expected: Any) -> None:
    """The same probabilities, and an uncertainty by Laplace around them."""
    x, y = rows()
    posterior = bq.adopt(net, likelihoods.Categorical())
    assert posterior.predict(x).mean.numpy() == pytest.approx(np.asarray(expected), abs=1e-6)
    around = bq.inference.laplace.fit(posterior, bq.Dataset(x, y), subset="last_layer", seed=0).predict(x, seed=0)
    assert float(around.epistemic.max()) > 0


def test_a_network_that_skorch_trained() -> None:
    skorch = pytest.importorskip("skorch", reason="needs skorch")
    x, y = rows()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    trained = skorch.NeuralNetClassifier(net, criterion=nn.CrossEntropyLoss, max_epochs=5, lr=0.1, verbose=0)
    trained.fit(x.numpy(), y.numpy())
    check(trained.module_, trained.predict_proba(x.numpy()))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own use of torch
def test_a_module_that_lightning_trained(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning", reason="needs Lightning")
    x, y = rows()

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    trainer.fit(module, loader)
    with torch.no_grad():
        expected = module.eval()(x).softmax(dim=1)
    check(module, expected)
