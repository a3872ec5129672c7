"""The card is made of the arguments alone."""

from registry.card import model_card


def test_a_card_is_the_same_for_the_same_model_and_names_what_it_was_made_from_and_how_it_is_served():
    facts = {
        "name": "awq-w4",
        "kind": "quantized",
        "recipe": {"method": "awq", "scales": {"grid": 20}},
        "origin": {"source": "internlm/internlm2-chat-1_8b", "revision": "abc"},
        "base_model": "internlm/internlm2-chat-1_8b",
    }
    card = model_card(**facts, quant_method="awq", license_name="apache-2.0")
    assert card == model_card(**facts, quant_method="awq", license_name="apache-2.0")
    assert "base_model: internlm/internlm2-chat-1_8b\nbase_model_relation: quantized\nlicense: apache-2.0\n" in card
    assert "lmdeploy serve api_server FOLDER --backend turbomind --model-format awq\n" in card
    assert "| scales.grid | 20 |" in card
    pruned = model_card(**(facts | {"kind": "pruned", "base_model": None}))
    assert "base_model" not in pruned
    assert "--model-format" not in pruned
    whole = model_card(**facts, quant_method="smooth_quant")
    assert "lmdeploy serve api_server FOLDER --backend pytorch\n" in whole
