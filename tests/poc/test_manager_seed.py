"""The unit tests of the reference implementation, as they stand but for the package path: `pocqueue.poc`, once `vllm.poc`."""

# Another's text, kept as it came: no linting, typing or formatting of ours.
# mypy: ignore-errors
# ruff: noqa
# fmt: off

import pytest
import time
import torch
from unittest.mock import Mock, MagicMock, patch
from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.manager import PoCManager, PoCStats

class MockModelConfig:
    """Mock vLLM model config"""
    hidden_size = 128
    vocab_size = 1000

class TestPoCStats:
    def test_initial_state(self):
        stats = PoCStats()
        assert stats.total_checked == 0
        assert stats.total_valid == 0
        assert stats.elapsed == 0.0
        assert stats.rate == 0.0
    
    def test_elapsed_calculation(self):
        stats = PoCStats(total_checked=100, start_time=time.time() - 10)
        assert stats.elapsed >= 10
        assert stats.elapsed < 11
    
    def test_rate_calculation(self):
        stats = PoCStats(total_checked=100, start_time=time.time() - 10)
        assert stats.rate >= 9
        assert stats.rate <= 11

class TestPoCManagerInit:
    @pytest.fixture
    def mock_model(self):
        model = Mock()
        # Return a CPU tensor for testing (no GPU required)
        model.parameters.return_value = iter([torch.zeros(1)])
        return model
    
    @pytest.fixture
    def manager(self, mock_model):
        return PoCManager(mock_model, MockModelConfig())
    
    def test_initial_state(self, manager):
        assert manager.state == PoCState.IDLE
        assert manager.config is None
        assert manager.target is None
        assert manager.valid_nonces == []
        assert manager.valid_distances == []

class TestPoCManagerStateTransitions:
    @pytest.fixture
    def mock_model(self):
        model = Mock()
        model.parameters.return_value = iter([torch.zeros(1, device="cpu")])
        return model
    
    @pytest.fixture
    def manager(self, mock_model):
        return PoCManager(mock_model, MockModelConfig())
    
    @pytest.fixture
    def config(self):
        return PoCConfig(
            block_hash="hash1",
            block_height=100,
            public_key="node1",
            r_target=0.5,
        )
    
    def test_init_round_sets_config(self, manager, config):
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
        
        assert manager.state == PoCState.IDLE  # init doesn't start generating
        assert manager.config == config
    
    def test_start_generate_sets_state(self, manager, config):
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
        
        manager.start_generate()
        assert manager.state == PoCState.GENERATING
    
    def test_start_validate_sets_state(self, manager, config):
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
        
        manager.start_validate()
        assert manager.state == PoCState.VALIDATING
    
    def test_init_round_resets_counters(self, manager, config):
        manager.valid_nonces = [1, 2, 3]
        manager.valid_distances = [0.1, 0.2, 0.3]
        manager.stats.total_checked = 100
        
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
        
        assert manager.valid_nonces == []
        assert manager.valid_distances == []
        assert manager.stats.total_checked == 0
    
    def test_init_round_raises_if_already_generating(self, manager, config):
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        with pytest.raises(RuntimeError, match="Round already in progress"):
            manager.init_round(config)
    
    def test_start_generate_requires_init(self, manager):
        with pytest.raises(RuntimeError, match="Round not initialized"):
            manager.start_generate()
    
    def test_start_validate_requires_init(self, manager):
        with pytest.raises(RuntimeError, match="Round not initialized"):
            manager.start_validate()
    
    def test_stop_round(self, manager, config):
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        manager.stop_round()
        assert manager.state == PoCState.STOPPED

class TestPoCManagerNonceGeneration:
    """Cross-check: Nonce iteration pattern with original NonceIterator"""
    
    @pytest.fixture
    def mock_model(self):
        model = Mock()
        model.parameters.return_value = iter([torch.zeros(1, device="cpu")])
        return model
    
    @pytest.fixture
    def manager(self, mock_model):
        return PoCManager(mock_model, MockModelConfig())
    
    def test_single_node_nonces(self, manager):
        """Single node gets sequential nonces: 0, 1, 2, ..."""
        config = PoCConfig(
            block_hash="hash1",
            block_height=100,
            public_key="node1",
            r_target=0.5,
            node_id=0,
            node_count=1,
            batch_size=4,
        )
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        nonces1 = manager.get_next_nonces()
        assert nonces1 == [0, 1, 2, 3]
        
        nonces2 = manager.get_next_nonces()
        assert nonces2 == [4, 5, 6, 7]
    
    def test_multi_node_nonces_node0(self, manager):
        """Node 0 of 3 gets: 0, 3, 6, 9, ..."""
        config = PoCConfig(
            block_hash="hash1",
            block_height=100,
            public_key="node1",
            r_target=0.5,
            node_id=0,
            node_count=3,
            batch_size=4,
        )
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        nonces = manager.get_next_nonces()
        assert nonces == [0, 3, 6, 9]
    
    def test_multi_node_nonces_node1(self, manager):
        """Node 1 of 3 gets: 1, 4, 7, 10, ..."""
        config = PoCConfig(
            block_hash="hash1",
            block_height=100,
            public_key="node1",
            r_target=0.5,
            node_id=1,
            node_count=3,
            batch_size=4,
        )
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        nonces = manager.get_next_nonces()
        assert nonces == [1, 4, 7, 10]
    
    def test_multi_node_nonces_node2(self, manager):
        """Node 2 of 3 gets: 2, 5, 8, 11, ..."""
        config = PoCConfig(
            block_hash="hash1",
            block_height=100,
            public_key="node1",
            r_target=0.5,
            node_id=2,
            node_count=3,
            batch_size=4,
        )
        with patch('pocqueue.poc.manager.generate_target') as mock_target:
            mock_target.return_value = torch.randn(1000)
            manager.init_round(config)
            manager.start_generate()
        
        nonces = manager.get_next_nonces()
        assert nonces == [2, 5, 8, 11]

class TestPoCManagerStatus:
    @pytest.fixture
    def mock_model(self):
        model = Mock()
        model.parameters.return_value = iter([torch.zeros(1, device="cpu")])
        return model
    
    @pytest.fixture
    def manager(self, mock_model):
        return PoCManager(mock_model, MockModelConfig())
    
    def test_get_status_idle(self, manager):
        status = manager.get_status()
        assert status["state"] == "IDLE"
        assert status["valid_nonces"] == []
        assert status["valid_distances"] == []
        assert status["total_checked"] == 0
        assert status["total_valid"] == 0
    
    def test_get_status_with_data(self, manager):
        manager.valid_nonces = [1, 2, 3]
        manager.valid_distances = [0.1, 0.2, 0.3]
        manager.stats.total_checked = 100
        manager.stats.total_valid = 3
        
        status = manager.get_status()
        assert status["valid_nonces"] == [1, 2, 3]
        assert status["valid_distances"] == [0.1, 0.2, 0.3]
        assert status["total_checked"] == 100
        assert status["total_valid"] == 3
