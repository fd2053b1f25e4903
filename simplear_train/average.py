"""The mean of several models of one run: what they agree on stays, what each has learnt by heart fades.

In runs/:

    python -m simplear_train.average --models sft-wide/model-9000 sft-wide/model --out average/model

Wortsman et al. 2022, "Model soups". Meant for models that lie on one path of training (`loop.keep_models` keeps them);
those of separate runs have nothing in common, element by element. All but the weights comes from the last model.
"""

import argparse
import sys
from pathlib import Path

import torch

from simplear_engine.errors import InvalidRequestError, SimplearError

from .model_folder import from_folder


@torch.no_grad()
def average(models: list[str], out: Path) -> Path:
    folders = [from_folder(name) for name in models]
    states = [folder.model.state_dict() for folder in folders]
    for name, state in zip(models, states):
        if {key: value.shape for key, value in state.items()} != {key: v.shape for key, v in states[-1].items()}:
            raise InvalidRequestError(f"{name}: expected weights of the same names and shapes as {models[-1]}")
    mean = {key: torch.stack([state[key].float() for state in states]).mean(0) for key in states[-1]}
    folders[-1].save(out, torch.bfloat16, mean)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="model folders")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    try:
        print(average(args.models, args.out))
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
