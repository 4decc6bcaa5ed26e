package attacks

import "slices"

// all is every case there is: one line for each area.
func all() []Attack {
	return slices.Concat(
		clockAttacks,
		configAttacks,
		deltaAttacks,
		diskAttacks,
		environmentAttacks,
		indexAttacks,
		limitAttacks,
		manifestAttacks,
		metadataAttacks,
		mqttAttacks,
		raceAttacks,
		recordAttacks,
		releaseAttacks,
		signatureAttacks,
		sourceAttacks,
		statementAttacks,
		tableAttacks,
		tpmAttacks,
	)
}
