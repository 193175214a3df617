// Package lint holds tests of what is deployed but not Go: the Helm chart, the
// Kubernetes examples, the alert rules and the dashboard. It is a module of its
// own, so that Helm and Prometheus are no dependencies of the product.
package lint
