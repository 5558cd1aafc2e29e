import pytest

from conversion_assets_tests.integration.deployment.slack import SlackReceiver


@pytest.fixture
def slack():
    with SlackReceiver().listening() as receiver:
        yield receiver
