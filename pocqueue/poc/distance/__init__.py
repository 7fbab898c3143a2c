"""The first proof scheme: a nonce is valid if the distance of its logits to the block's target is small."""
