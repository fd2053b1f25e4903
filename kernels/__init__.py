"""Operations, one folder each, installed as simplear_engine.kernels; `op.all_ops()` finds them."""
