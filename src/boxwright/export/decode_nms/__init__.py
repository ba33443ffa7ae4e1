"""The operator `boxwright::DecodeNMS` written in standard ONNX operators (opset 17).

`function.py` puts the steps together as `boxwright.core.decode` numbers them: `scores.py` (1), `selection.py` (2),
`boxes.py` (3), `suppression.py` (4) and `output.py` (5).
"""
